"""Post-training int8 quantisation of ONNX and OpenVINO models with NNCF."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.convert import INPUT, quiet

RANKING = 100  # validation images used to rank the layers; each layer needs a pass over them


@dataclass(frozen=True)
class Pictures:
    """Evaluation views of un-augmented images.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        labels: (N,) int64, index of the class in the head; -1 where unknown.
    """

    pixels: np.ndarray
    labels: np.ndarray


def quantise(
    model: Any, calibration: Pictures, spec: InputSpec, validation: Pictures | None, max_drop: float
) -> Any:
    """Quantise weights and activations to int8.

    Where plain quantisation loses more accuracy than is allowed, layers are set back to float32, the most harmful
    first, until it does not (NNCF's accuracy control); this takes minutes.

    Args:
        model: an ``onnx.ModelProto`` or an ``openvino.Model``; it is not changed.
        calibration: images whose activations give the ranges.
        spec: input of the model.
        validation: labelled images to measure accuracy on; None: plain quantisation, whatever accuracy it loses.
        max_drop: points of top-1 that may be lost.
    """
    nncf: Any = importlib.import_module("nncf")
    feed = nncf.Dataset(list(calibration.pixels), lambda pixels: {INPUT: normalised(pixels[None], spec)})
    options = {"subset_size": len(calibration.pixels), **_options(model)}
    with _silent():
        if validation is None:
            return nncf.quantize(model, feed, **options)
        return nncf.quantize_with_accuracy_control(
            model,
            feed,
            nncf.Dataset(list(zip(validation.pixels, validation.labels, strict=True))),
            _validation(spec),
            max_drop=max_drop / 100,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(RANKING, len(validation.pixels))
            ),
            **options,
        )


def _options(model: Any) -> dict[str, Any]:
    """Options for networks with attention: NNCF's scheme for transformers, and products stay in float32.

    With products of two activations in int8, OpenVINO 2026.4 reads memory that it never wrote, and gives wrong
    values or crashes: EfficientViT's linear attention fell from 94% to 38% top-1 on the digits, each time differently.
    """
    nncf: Any = importlib.import_module("nncf")
    products = _products_onnx(model) if hasattr(model, "graph") else _products_openvino(model)
    if not products:
        return {}
    return {
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(names=products),
    }


def _products_onnx(model: Any) -> list[str]:
    """Names of the matrix products of two activations in an ONNX model."""
    graph = model.graph
    constant = {entry.name for entry in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constant & set(node.input)]


def _products_openvino(model: Any) -> list[str]:
    """Names of the matrix products of two activations in an OpenVINO model."""
    return [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        and all(source.get_node().get_type_name() != "Constant" for source in operation.input_values())
    ]


def _validation(spec: InputSpec) -> Callable[[Any, Iterable[Any]], tuple[float, list[float]]]:
    """The validation function for NNCF: (model, images with labels) to (accuracy, 1 or 0 for each image)."""

    def validate(model: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        run = _runner(model)
        right = [float(run(normalised(pixels[None], spec)).argmax() == label) for pixels, label in items]
        return sum(right) / max(1, len(right)), right

    return validate


def _runner(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs what NNCF gives: a compiled OpenVINO model, or an ONNX model that is not compiled."""
    if not hasattr(model, "graph"):
        return lambda images: np.asarray(model({INPUT: images})[0])
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep NNCF from drawing progress bars on stdout."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield
