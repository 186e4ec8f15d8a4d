"""Post-training int8 quantisation of ONNX and OpenVINO models with NNCF."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tutelage.core.progress import Often
from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.convert import INPUT, write_onnx
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.openvino import openvino_core, signal_stack_kept

SHARES = (0.1, 0.3, 0.6)  # of the layers that stay in float32, tried in turn until int8 loses little enough
SECONDS = 60.0  # for all attempts after plain quantisation; none begins that would take longer, as the one before did
RANKING = 16  # images on which the layers' errors are measured
BATCH = 16  # images
LAYERS = ("Convolution", "GroupConvolution", "MatMul")  # OpenVINO's names of what is quantised
UNBIASED = "/WithoutBiases"  # what OpenVINO adds to the name of a layer whose bias it has split off
Say = Callable[[str], object]


@dataclass(frozen=True)
class Pictures:
    """Evaluation views of un-augmented images.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        labels: (N,) int64, index of the class in the head; -1 where unknown.
    """

    pixels: np.ndarray
    labels: np.ndarray


class Quantiser:
    """Quantises weights and activations of one network to int8, in its OpenVINO and in its ONNX form.

    Where plain quantisation loses more accuracy than is allowed, layers are left in float32, the most harmful first:
    a tenth of them, then 30%, then 60% (`SHARES`), until it does not. The attempts for both forms together take no more
    than about `SECONDS`, so that the time is bounded; the most accurate attempt is then the result.
    """

    def __init__(
        self,
        calibration: Pictures,
        spec: InputSpec,
        validation: Pictures | None = None,
        max_drop: float = 1.0,
        say: Say = lambda line: None,
    ) -> None:
        """Prepare the images.

        Args:
            calibration: images whose activations give the ranges.
            spec: input of the model.
            validation: labelled images to measure accuracy on; None: plain quantisation, whatever it loses.
            max_drop: points of top-1 that may be lost on them.
            say: called with a line before each step, and every few seconds within a long one.
        """
        self.calibration = calibration
        self.spec = spec
        self.validation = validation
        self.max_drop = max_drop
        self.say = say
        self._reference: float | None = None  # top-1 in float32, which both forms share
        self._pair: tuple[Any, Any] | None = None  # the OpenVINO form and its plain int8 form
        self._first = 0  # how many of SHARES were too small for the form before
        self._left = SECONDS
        self._took = 0.0  # seconds of the attempt before

    def openvino(self, model: Any) -> Any:
        """Return the int8 form of an ``openvino.Model``, which is not changed."""
        plain = self._quantised(model, "OpenVINO", ())
        self._pair = model, plain
        return self._accurate(model, plain, "OpenVINO")

    def onnx(self, model: Any) -> Any:
        """Return the int8 form of an ``onnx.ModelProto``, which is not changed; call `openvino` before."""
        return self._accurate(model, self._quantised(model, "ONNX", ()) if not self._first else None, "ONNX")

    def _accurate(self, model: Any, plain: Any, form: str) -> Any:
        """Return the plain form, or one with layers in float32 where that loses too much."""
        if self.validation is None:
            return plain
        if self._reference is None:
            self._reference = self._top1(model, form, "float32")
        tries: list[tuple[float, Any]] = []
        if plain is not None:
            tries.append((self._lost(plain, form, 0, ()), plain))
        layers: Sequence[str] = ()
        for share in SHARES[max(0, self._first - 1) :]:
            if tries and (tries[-1][0] <= self.max_drop or self._took > self._left or self._pair is None):
                break
            begin = time.monotonic()
            layers = layers or self._ranked()
            kept = layers[: math.ceil(share * len(layers))]
            self._first = max(self._first, SHARES.index(share) + 1)
            candidate = self._quantised(model, form, kept)
            tries.append((self._lost(candidate, form, len(kept), layers), candidate))
            self._took = time.monotonic() - begin
            self._left -= self._took
        return min(tries, key=lambda one: max(one[0], self.max_drop))[1]

    def _quantised(self, model: Any, form: str, kept: Sequence[str]) -> Any:
        nncf: Any = importlib.import_module("nncf")
        pixels = list(self.calibration.pixels)
        self.say(f"{form}: quantising to int8, calibrated on {len(pixels)} images")
        shown = sys.stdout  # NNCF's own is hidden

        def tell(count: int) -> None:
            with contextlib.redirect_stdout(shown):
                self.say(f"{form}: quantising to int8, {count:,} images read")

        read = Often(tell)

        def transform(one: np.ndarray) -> dict[str, np.ndarray]:
            read.add(1)
            return {INPUT: normalised(one[None], self.spec)}

        feed = nncf.Dataset(pixels, transform)
        with silent(), signal_stack_kept():
            return nncf.quantize(model, feed, subset_size=len(pixels), **_options(model, kept))

    def _lost(self, model: Any, form: str, kept: int, layers: Sequence[str]) -> float:
        """Points of top-1 that an int8 form loses."""
        assert self._reference is not None
        assert self.validation is not None
        lost = self._reference - self._top1(model, form, "int8")
        floats = f" with {kept} of {len(layers)} layers in float32" if kept else ""
        self.say(
            f"{form}: int8{floats} loses {max(0.0, lost):.2f} points of top-1 on {len(self.validation.pixels)} images"
        )
        return lost

    def _top1(self, model: Any, form: str, kind: str) -> float:
        assert self.validation is not None
        run, right, images = _runner(model), 0, len(self.validation.pixels)
        done = Often(lambda count: self.say(f"{form}: {kind} on {count:,} of {images:,} images"))
        for begin in range(0, images, BATCH):
            pixels = self.validation.pixels[begin : begin + BATCH]
            labels = self.validation.labels[begin : begin + BATCH]
            right += int((run(normalised(pixels, self.spec)).argmax(1) == labels).sum())
            done.add(len(pixels))
        return 100 * right / max(1, images)

    def _ranked(self) -> list[str]:
        """Return the names of all layers, the most harmful first: by the error that a layer adds to its inputs'.

        An error is the squared difference of the outputs of both forms, relative to the float32 output.
        """
        assert self._pair is not None
        model, plain = self._pair
        images = normalised(self.calibration.pixels[:RANKING], self.spec)
        names = [
            one.get_friendly_name()
            for one in model.get_ordered_ops()
            if one.get_type_name() in LAYERS and not _is_product(one)
        ]
        exact, rounded = (_layer_outputs(one, names, images) for one in (model, plain))
        errors = {
            name: float(np.square(found - value).sum() / max(np.square(value).sum(), 1e-12))
            for name, value, found in zip(names, exact, rounded, strict=True)
        }
        reached: dict[str, float] = {}
        added: dict[str, float] = {}
        for operation in model.get_ordered_ops():
            name = operation.get_friendly_name()
            before = max(
                (reached[one.get_node().get_friendly_name()] for one in operation.input_values()), default=0.0
            )
            reached[name] = errors.get(name, before)
            if name in errors:
                added[name] = errors[name] - before
        return sorted(added, key=lambda name: -added[name])


def _layer_outputs(model: Any, names: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
    """Run an OpenVINO model on (N, 3, H, W), and return the output of each named layer."""
    copy = model.clone()
    layers = {one.get_friendly_name(): one for one in copy.get_ordered_ops()}
    results = copy.add_outputs([layers[name].output(0) for name in names])
    places = [copy.get_result_index(result) for result in results]
    found = _compiled(copy)({INPUT: images})
    return [np.asarray(found[place]) for place in places]


def _options(model: Any, kept: Sequence[str]) -> dict[str, Any]:
    """Options of NNCF for a model.

    In networks with attention NNCF's scheme for transformers is used, and products stay in float32. With products of
    two activations in int8, OpenVINO 2026.4 reads memory that it never wrote, and gives wrong values or crashes:
    EfficientViT's linear attention fell from 94% to 38% top-1 on the digits, each time differently.

    In ONNX, activations have one scale for all channels: NNCF gives those of depthwise layers one scale each, with
    which ONNX Runtime 1.32 ends in `QLinearConv : input zero point must be a scalar`.

    Args:
        model: an ``onnx.ModelProto`` or an ``openvino.Model``.
        kept: OpenVINO's names of layers that stay in float32.
    """
    nncf: Any = importlib.import_module("nncf")
    is_onnx = hasattr(model, "graph")
    products = _products_onnx(model) if is_onnx else _products_openvino(model)
    ignored = [*products, *((name.removesuffix(UNBIASED) for name in kept) if is_onnx else kept)]
    options: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if products else {}
    if ignored:
        # a name that the ONNX form does not have is passed over
        options["ignored_scope"] = nncf.IgnoredScope(names=ignored, validate=False)
    if is_onnx:
        parameters: Any = importlib.import_module("nncf.quantization.advanced_parameters")
        options["advanced_parameters"] = parameters.AdvancedQuantizationParameters(
            activations_quantization_params=parameters.QuantizationParameters(per_channel=False)
        )
    return options


def _products_onnx(model: Any) -> list[str]:
    """Names of the matrix products of two activations in an ONNX model."""
    graph = model.graph
    constant = {entry.name for entry in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constant & set(node.input)]


def _products_openvino(model: Any) -> list[str]:
    """Names of the matrix products of two activations in an OpenVINO model."""
    return [operation.get_friendly_name() for operation in model.get_ordered_ops() if _is_product(operation)]


def _is_product(operation: Any) -> bool:
    """Whether an OpenVINO operation is a matrix product of two activations."""
    return operation.get_type_name() == "MatMul" and all(
        source.get_node().get_type_name() != "Constant" for source in operation.input_values()
    )


def _compiled(model: Any) -> Any:
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _runner(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a model: from normalised images (B, 3, H, W) to logits (B, C)."""
    if not hasattr(model, "graph"):
        compiled = _compiled(model)
        return lambda images: np.asarray(compiled({INPUT: images})[0])
    runtime: Any = importlib.import_module("onnxruntime")
    with TemporaryDirectory(
        prefix="tutelage-"
    ) as folder:  # by a file, since bytes of a protobuf end at 2 GiB
        file = Path(folder) / "model.onnx"
        write_onnx(model, file)
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep NNCF from drawing progress bars on stdout."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield
