"""The files for LiteRT: made from the PyTorch module by litert-torch, and quantised by ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.core.litert import LiteRTFile
from tutelage.core.progress import Often
from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.convert import INPUT, NAMESPACE, OUTPUT, cause, ways
from tutelage.deploy.formats.making import Making
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.quiet import quiet

FLOAT_FILE, INT8_FILE = "model.tflite", "model-int8.tflite"
ALL: tuple[str, ...] = ("*",)  # operations that ai-edge-quantizer knows
LAYERS: tuple[str, ...] = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
)  # LiteRT's names of what has weights
FEW = 8  # images on which an int8 file is run once, to find operations that cannot be
READ = 25  # images between two lines about the calibration
ALIGNMENT = 16  # bytes; LiteRT's schema wants it of weights, and flatbuffers' Python code does not see to it


def make(making: Making) -> None:
    """Write ``model.tflite``, and ``model-int8.tflite`` where there are images to calibrate on."""

    def converted(path: Path) -> bytes:
        content = to_litert(making.model.module, making.model.input_spec)
        save_litert(content, path, making.manifest)
        return content

    def quantised(path: Path) -> None:
        assert content is not None
        save_litert(_Quantiser(content, making).best(), path, making.manifest)

    content = making.attempt(FLOAT_FILE, converted)
    if content is not None and making.calibration is not None:
        making.attempt(INT8_FILE, quantised)


def to_litert(module: nn.Module, spec: InputSpec) -> bytes:
    """Convert (1, 3, H, W) normalised float32 to (1, C) logits.

    Returns:
        The content of a ``.tflite`` file.

    Raises:
        TutelageError: litert-torch cannot convert the model; the line names the operation.
    """
    litert: Any = importlib.import_module("litert_torch")
    litert.config.show_progress = False
    failure: Exception | None = None
    for network in ways(module):
        try:
            with quiet():
                made = litert.convert(network, (torch.zeros(1, 3, spec.height, spec.width),))
                return bytes(made.model_content())
        # the converter's stages raise exceptions of their own kinds, without a common base
        except Exception as error:
            failure = error
    assert failure is not None
    raise TutelageError(
        f"{type(module).__name__}: cannot be converted to LiteRT ({cause(failure)}); deploy another architecture"
    )


def save_litert(content: bytes, path: Path, manifest: Manifest) -> None:
    """Write a LiteRT model with its manifest in its metadata, under names such as ``tutelage.labels``."""
    tools: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = tools.read_model_from_bytearray(bytearray(content))
    model.metadata = list(model.metadata or [])
    signature = model.signatureDefs[0]
    signature.inputs[0].name, signature.outputs[0].name = INPUT, OUTPUT
    for key, value in manifest.properties().items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = value.encode()
        entry.name, entry.buffer = f"{NAMESPACE}.{key}", len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    path.write_bytes(_packed(model, len(content)))


def _packed(model: Any, size: int) -> bytes:
    """A model as the bytes of a file.

    Weights are aligned as the schema wants it. Equal vectors are written once: each layer has a zero point, which is 0,
    for each channel of its weights and of its bias, which would be 6% of EfficientNet-Lite0 in int8.
    """
    flatbuffers: Any = importlib.import_module("flatbuffers")
    written: dict[tuple[str, bytes], int] = {}

    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802, the base's name
            content = x.tobytes()
            key = x.dtype.str, content
            if key not in written:
                self.StartVector(x.itemsize, x.size, ALIGNMENT)
                self.head -= len(content)
                self.Bytes[self.head : self.head + len(content)] = content
                written[key] = self.EndVector()
            return written[key]

    for buffer in model.buffers:
        if buffer.data is not None:  # else its bytes would be written one by one
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    builder = Builder(2 * size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Quantiser:
    """Makes the int8 form of a float LiteRT model; inputs and outputs stay float32."""

    def __init__(self, content: bytes, making: Making) -> None:
        self._content = content
        self._making = making
        self._kept: list[str] = []  # names of operations that cannot be run in int8
        self._ranges = self._calibrated()

    def best(self) -> bytes:
        """Return the form with all operations in int8, or with layers alone where that fails or loses too much.

        Raises:
            TutelageError: there is no form that can be run.
        """
        try:
            plain = self._runnable(ALL)
        except TutelageError as error:
            self._say(f"{error}; int8 of layers alone is tried")
            return self._runnable(LAYERS)
        if self._making.validation is None:
            return plain
        reference = self._top1(self._content)
        lost = reference - self._top1(plain)
        self._say(f"int8 loses {max(0.0, lost):.2f} points of top-1 on {self._images} images")
        if lost <= self._making.max_drop:
            return plain
        layers = self._runnable(LAYERS)
        then = reference - self._top1(layers)
        self._say(f"int8 of layers alone loses {max(0.0, then):.2f} points")
        return layers if then < lost else plain

    def _calibrated(self) -> Any:
        """The ranges of all activations on the calibration images."""
        pictures = self._making.calibration
        assert pictures is not None
        count = len(pictures.pixels)
        self._say(f"quantising to int8, calibrated on {count} images")
        calibrator: Any = importlib.import_module("ai_edge_quantizer.calibrator")
        recipe = self._recipe(ALL)
        signature, argument = LiteRTFile(self._content).signature
        read = Often(lambda number: self._say(f"quantising to int8, {number:,} of {count:,} images read"))
        ranges: Any = None
        for begin in range(0, count, READ):
            feed = [{argument: image} for image in self._prepared(pictures, begin, begin + READ)]
            with _silent():
                ranges = recipe.calibrate(
                    {signature: feed},
                    ranges,
                    num_threads=torch.get_num_threads(),
                    # as good as the default on EfficientNet-Lite0, and five times as fast
                    mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
                )
            read.add(len(feed))
        return ranges

    def _recipe(self, operations: tuple[str, ...]) -> Any:
        """A quantiser of ai-edge-quantizer's that puts these operations into int8, but not those that are kept."""
        quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
        named = importlib.import_module("ai_edge_quantizer.qtyping").TFLOperationName
        made = quantizer.Quantizer(self._content)
        for name in operations:
            made.add_static_config(".*", named(name), activation_num_bits=8, weight_num_bits=8)
        for name in ("INPUT", "OUTPUT", *self._kept):
            made.update_quantization_recipe(".*", named(name), algorithm_key="no_quantize")
        return made

    def _quantised(self, operations: tuple[str, ...]) -> bytes:
        with _silent():
            made = self._recipe(operations).quantize(
                self._ranges, enable_progress_bar=False, enable_progress_report=False
            )
        return bytes(made.quantized_model)

    def _runnable(self, operations: tuple[str, ...]) -> bytes:
        """Return a form that was run; operations that cannot be made or run in int8 are left in float.

        Raises:
            TutelageError: there is none.
        """
        while True:
            try:
                content = self._quantised(operations)
                self._run(content)
                return content
            except (RuntimeError, ValueError) as error:
                refused = refused_operation(error)
                if refused is None or refused in self._kept:
                    raise TutelageError(f"not every operation can be in int8 ({cause(error)})") from None
                self._kept.append(refused)
                self._say(
                    f"{refused} stays in float, since LiteRT cannot have it in int8 ({cause(error)[:80]})"
                )

    def _run(self, content: bytes) -> None:
        """Run a form on some images in a process of its own, which LiteRT may end by a fault of memory.

        Raises:
            RuntimeError: it cannot be run; the message is LiteRT's.
        """
        pictures = self._making.calibration
        assert pictures is not None
        with TemporaryDirectory(prefix="tutelage-") as folder:
            (Path(folder) / "model.tflite").write_bytes(content)
            np.save(Path(folder) / "images.npy", np.stack(list(self._prepared(pictures, 0, FEW))))
            done = subprocess.run(
                [sys.executable, "-m", "tutelage.core.litert", folder],
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        if done.returncode < 0:
            raise RuntimeError(f"LiteRT crashes with it, by signal {-done.returncode}")
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-1000:])

    @property
    def _images(self) -> int:
        return 0 if self._making.validation is None else len(self._making.validation.labels)

    def _top1(self, content: bytes) -> float:
        """Percentage of the validation images that a form is right about."""
        pictures, count = self._making.validation, self._images
        assert pictures is not None
        file, right = LiteRTFile(content, torch.get_num_threads()), 0
        done = Often(lambda number: self._say(f"{number:,} of {count:,} images classified"))
        for image, label in zip(self._prepared(pictures, 0, count), pictures.labels, strict=True):
            right += int(file(image).argmax() == label)
            done.add(1)
        return 100 * right / count

    def _prepared(self, pictures: Pictures, begin: int, end: int) -> Iterator[np.ndarray]:
        """Some of the images one at a time, (1, 3, H, W)."""
        for pixels in pictures.pixels[begin:end]:
            yield np.ascontiguousarray(normalised(pixels[None], self._making.model.input_spec))

    def _say(self, line: str) -> None:
        self._making.say(f"{self._making.model.spec}: LiteRT: {line}")


def refused_operation(error: Exception) -> str | None:
    """The operation that LiteRT could not prepare or run, or ai-edge-quantizer could not quantise, such as ``DIV``.

    LiteRT's error names it. That of the quantiser does not, but each kind of operation has a function of its own there,
    such as `materialize_concatenation`. None: it is neither.
    """
    if found := re.search(r"Node number \d+ \((\w+)\) failed to \w+", str(error)):
        return found[1]
    calls = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    named = importlib.import_module("ai_edge_quantizer.qtyping").TFLOperationName
    names = [name.removeprefix("materialize_").upper() for name in calls if name.startswith("materialize_")]
    return next((name for name in names if name in named.__members__), None)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep ai-edge-quantizer from drawing progress bars, and from warning of channels whose weights are all 0."""
    with (
        quiet(),
        np.errstate(all="ignore"),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield
