"""The int8 and int4 forms of a LiteRT model, made by ai-edge-quantizer, and tried before they are handed on."""

from __future__ import annotations

import contextlib
import copy
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

from tutelage.core.errors import TutelageError
from tutelage.core.litert import LiteRTFile
from tutelage.core.progress import Often
from tutelage.data.input_spec import normalised
from tutelage.deploy.convert import cause
from tutelage.deploy.formats.litert_file import LAYERS, kinds, last_layers, with_finite_padding
from tutelage.deploy.formats.making import Making
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.quiet import quiet

ALL: tuple[str, ...] = ("*",)  # operations that ai-edge-quantizer knows
FEW = 8  # images on which an int8 file is run once, to find operations that cannot be
READ = 25  # images between two lines about the calibration


class CrashError(RuntimeError):
    """LiteRT ended the process that ran a file."""


class Quantiser:
    """Makes the int8 form of a float LiteRT model, and one with 4 bits in it; inputs and outputs stay float32."""

    def __init__(self, content: bytes, making: Making) -> None:
        self._content = content
        self._making = making
        self._kept: list[str] = []  # names of operations that cannot be run in int8
        self._operations = ALL  # which are in int8 in the form that `best` returned
        self._four: tuple[tuple[str, str], ...] = ()  # the layers with weights in 4 bits, see `last_layers`
        self._float_top1: float | None = None
        self._content, self._ranges = with_finite_padding(content, self._calibrated())

    def best(self) -> bytes:
        """Return the form with all operations in int8, or with layers alone where that fails or loses too much.

        Raises:
            TutelageError: there is no form that can be run.
        """
        try:
            plain = self._runnable(ALL)
        except TutelageError as error:
            self._say(f"{error}; int8 of layers alone is tried")
            self._operations = LAYERS
            return self._runnable(LAYERS)
        if self._making.validation is None:
            return plain
        lost = self._lost(plain)
        self._say(f"int8 loses {max(0.0, lost):.2f} points of top-1 on {self._images} images")
        if lost <= self._making.max_drop:
            return plain
        layers = self._runnable(LAYERS)
        then = self._lost(layers)
        self._say(f"int8 of layers alone loses {max(0.0, then):.2f} points")
        if then >= lost:
            return plain
        self._operations = LAYERS
        return layers

    def small(self) -> bytes:
        """Return the form of `best`, which is called before, with weights in 4 bits: those of the last layers.

        The scales of these weights are those of OCTAV (Sakr et al. 2022), one for each channel. The classifier's inputs
        get their scale while the file runs, from each image's own values, and its logits stay float32. The convolution
        before it has 4 bits too, where no more top-1 is lost than is allowed.

        Raises:
            TutelageError: there is no such form that can be run and loses no more.
        """
        layers = last_layers(self._content)
        if not layers:
            raise TutelageError("the last layer is not a linear one, so that no weights can have 4 bits")
        for self._four in dict.fromkeys((layers, layers[:1])):
            what = f"4 bits in the last {' and '.join(kind for kind, _ in self._four)}"
            try:
                content = self._tried(self._operations)
            except (RuntimeError, ValueError) as error:
                found = f"LiteRT cannot have {what} ({cause(error)})"
            else:
                if self._making.validation is None:
                    return content
                lost = self._lost(content)
                found = f"{what} lose {max(0.0, lost):.2f} points of top-1 on {self._images} images"
                if lost <= self._making.max_drop:
                    self._say(found)
                    return content
            self._say(found)
        raise TutelageError(found)

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
        for kind, output in self._four:
            only = f"^{re.escape(output)};?$"
            if kind == "FULLY_CONNECTED":
                made.add_dynamic_config(only, named(kind), num_bits=4, algorithm_key="OCTAV")
            else:
                made.add_static_config(only, named(kind), 8, 4, algorithm_key="OCTAV")
        return made

    def _quantised(self, operations: tuple[str, ...]) -> bytes:
        with _silent():
            made = self._recipe(operations).quantize(
                copy.deepcopy(self._ranges),  # which it changes
                enable_progress_bar=False,
                enable_progress_report=False,
            )
        return bytes(made.quantized_model)

    def _runnable(self, operations: tuple[str, ...]) -> bytes:
        """Return a form that was run; operations that cannot be made or run in int8 are left in float.

        Raises:
            TutelageError: there is none.
        """
        while True:
            try:
                return self._tried(operations)
            except CrashError as error:
                refused = self._crashing(operations, str(error))
                reason = str(error)
            except (RuntimeError, ValueError) as error:
                found, reason = refused_operation(error), cause(error)
                if found is None or found in self._kept:
                    raise TutelageError(f"not every operation can be in int8 ({reason})") from None
                refused = found
            self._kept.append(refused)
            self._say(f"{refused} stays in float, since LiteRT cannot have it in int8 ({reason[:80]})")

    def _tried(self, operations: tuple[str, ...]) -> bytes:
        content = self._quantised(operations)
        self._run(content)
        return content

    def _crashing(self, operations: tuple[str, ...], crash: str) -> str:
        """The kind of operation without which in int8 LiteRT no longer crashes: each is left in float in its turn.

        Raises:
            TutelageError: it is one of `LAYERS`, without which little would be in int8, or there is no such kind.
        """
        self._say(f"{crash}; each kind of operation is left in float in its turn, to find which one it is")
        in_int8 = [name for name in kinds(self._content) if operations == ALL or name in operations]
        kept = self._kept
        for name in sorted(in_int8, key=LAYERS.__contains__):
            if name in kept:
                continue
            self._kept = [*kept, name]
            try:
                self._tried(operations)
            except (RuntimeError, ValueError):
                continue
            finally:
                self._kept = kept
            if name in LAYERS:
                raise TutelageError(f"{name} cannot be in int8 ({crash})")
            return name
        raise TutelageError(f"{crash}, whichever of {', '.join(in_int8)} stays in float")

    def _run(self, content: bytes) -> None:
        """Run a form on some images in a process of its own, which LiteRT may end by a fault of memory.

        Raises:
            CrashError: LiteRT crashes with it.
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
            raise CrashError(f"LiteRT crashes with it, by signal {-done.returncode}")
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-1000:])

    @property
    def _images(self) -> int:
        return 0 if self._making.validation is None else len(self._making.validation.labels)

    def _lost(self, content: bytes) -> float:
        """Points of top-1 that a form loses on the validation images."""
        if self._float_top1 is None:
            self._float_top1 = self._top1(self._content)
        return self._float_top1 - self._top1(content)

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
