"""Post-training int8 quantisation by NNCF, of an ONNX or an OpenVINO model."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.deploy.convert import INPUT, quiet
from tutelage.inputs import InputSpec, normalised

RANKING = 100  # of the judges, how many rank the layers; each layer costs a pass over them
ATTENTION = {"Softmax", "ScaledDotProductAttention"}


@dataclass(frozen=True)
class Pictures:
    """Evaluation views of un-augmented images.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        labels: (N,) int64 classes of the head, -1 where unknown.
    """

    pixels: np.ndarray
    labels: np.ndarray


def quantise(
    model: Any, calibration: Pictures, spec: InputSpec, judges: Pictures | None, max_drop: float
) -> Any:
    """Quantise weights and activations to int8.

    Where plain quantisation loses more than is allowed, layers go back to float32, the most harmful first,
    until it does not (NNCF's accuracy control); that takes minutes.

    Args:
        model: an ``onnx.ModelProto`` or an ``openvino.Model``; left as it is.
        calibration: whose activations give the ranges.
        spec: how the model wants its pictures.
        judges: labelled images that the loss is measured on; None: plain quantisation, whatever it loses.
        max_drop: points of top-1.
    """
    nncf: Any = importlib.import_module("nncf")
    feed = nncf.Dataset(list(calibration.pixels), lambda pixels: {INPUT: normalised(pixels[None], spec)})
    options = {"subset_size": len(calibration.pixels), **_options(model)}
    with _silent():
        if judges is None:
            return nncf.quantize(model, feed, **options)
        return nncf.quantize_with_accuracy_control(
            model,
            feed,
            nncf.Dataset(list(zip(judges.pixels, judges.labels, strict=True))),
            _validation(spec),
            max_drop=max_drop / 100,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(RANKING, len(judges.pixels))
            ),
            **options,
        )


def _options(model: Any) -> dict[str, Any]:
    """Attention wants NNCF's scheme for transformers; every other network its plain one."""
    nncf: Any = importlib.import_module("nncf")
    operations = (
        {node.op_type for node in model.graph.node}
        if hasattr(model, "graph")
        else {operation.get_type_name() for operation in model.get_ops()}
    )
    return {"model_type": nncf.ModelType.TRANSFORMER} if operations & ATTENTION else {}


def _validation(spec: InputSpec) -> Callable[[Any, Iterable[Any]], tuple[float, list[float]]]:
    """NNCF's validation function: (model, images with labels) to (accuracy, right or wrong of each)."""

    def validate(model: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        run = _runner(model)
        right = [float(run(normalised(pixels[None], spec)).argmax() == label) for pixels, label in items]
        return sum(right) / max(1, len(right)), right

    return validate


def _runner(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """NNCF hands over a compiled OpenVINO model, or an ONNX model as it is."""
    if not hasattr(model, "graph"):
        return lambda images: np.asarray(model({INPUT: images})[0])
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """NNCF draws progress bars on stdout."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield
