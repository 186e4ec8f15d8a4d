"""What the files of one model are made from, shared by all formats."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import remove
from tutelage.deploy.convert import save_onnx, to_onnx
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.quantise import Pictures, Quantiser
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.base import Runtime
from tutelage.deploy.runtimes.registry import files_of
from tutelage.models.source import Model

Say = Callable[[str], object]
T = TypeVar("T")
ONNX_FILE = "model.onnx"


def require(runtimes: Sequence[Runtime]) -> None:
    """Import the packages that making files for these runtimes needs.

    Raises:
        TutelageError: one of them is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use to Intel
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else LiteRT's converter prints how it was built
    for runtime in runtimes:
        for name in runtime.makers:
            try:
                with quiet():
                    importlib.import_module(name)
            except ImportError:
                raise TutelageError(
                    f"exporting to {runtime.title} needs {name}, which is not installed: {runtime.makers_remedy}"
                ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)


@dataclass(eq=False)
class Making:
    """The files of one model while they are made.

    Attributes:
        model: with its weights, on any device; it is not changed.
        directory: where the files are written.
        manifest: goes into the files, where their format has a place for it.
        say: called with a line before each step.
        calibration: un-augmented training images for int8; None: no int8 files are made.
        validation: labelled images, to measure what int8 loses; None: there are none.
        max_drop: points of top-1 that int8 may lose on them.
        int4: also make files with weights in 4 bits, in formats that have such.
        failures: the files that could not be made, each with the error.
    """

    model: Model
    directory: Path
    manifest: Manifest
    say: Say
    calibration: Pictures | None = None
    validation: Pictures | None = None
    max_drop: float = 1.0
    int4: bool = False
    failures: dict[str, Exception] = field(default_factory=dict)

    @cached_property
    def onnx(self) -> Any:
        """The model as an ``onnx.ModelProto`` in float32, which is also in `ONNX_FILE` of the directory."""
        proto = to_onnx(self.model.module, self.model.input_spec)
        save_onnx(proto, self.directory / ONNX_FILE, self.manifest)
        return proto

    @cached_property
    def quantiser(self) -> Quantiser | None:
        """What makes the int8 forms of ONNX and OpenVINO; None: no int8 files are made."""
        if self.calibration is None:
            return None
        return Quantiser(
            self.calibration,
            self.model.input_spec,
            self.validation,
            self.max_drop,
            lambda line: self.say(f"{self.model.spec}: {line}"),
        )

    def attempt(self, name: str, make: Callable[[Path], T]) -> T | None:
        """Make one file; where that fails, note it in `failures` and return None, so that the others are made."""
        try:
            return make(self.directory / name)
        except Exception as error:  # of converters, whose exceptions have no common base
            self.failures[name] = error
            self.say(f"{self.model.spec}: {name} cannot be made ({reason(error)})")
            for file in files_of(self.directory / name):
                remove(file)
            return None


def reason(error: Exception) -> str:
    """Why a file could not be made, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"[:300]
