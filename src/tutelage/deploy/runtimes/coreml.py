"""Core ML's packages, which are folders. macOS runs them; anywhere else their content is checked."""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.deploy.runtimes.base import Options, Runtime, Session, Variant, damaged

INPUT, OUTPUT = "image", "logits"
MACOS = "darwin"
WEIGHTS = Path("Data", "com.apple.CoreML", "weights", "weight.bin")
# What the file of the weights has before each tensor: this mark, the kind, the bytes of the tensor, and their place.
BLOB, MARK = struct.Struct("<IIQQ"), 0xDEADBEEF
KINDS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float16), 2: np.dtype(np.float32)}


class _CoreMl:
    """Core ML's models may be used by one thread at a time, so that the threads wait for each other."""

    def __init__(self, path: Path) -> None:
        tools: Any = importlib.import_module("coremltools")
        try:
            self._model = tools.models.MLModel(str(path))
            spec = self._model.get_spec()
        except Exception as error:  # of the binding, without a common base
            raise damaged(path, str(error)) from None
        self.num_classes = int(spec.description.output[0].type.multiArrayType.shape[-1])
        self._lock = Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._one(image) for image in images])

    def _one(self, image: np.ndarray) -> np.ndarray:
        with self._lock:
            found = self._model.predict({INPUT: np.ascontiguousarray(image[None], np.float32)})[OUTPUT]
        return np.array(found, np.float32).reshape(-1)


def _inspect(path: Path, shape: tuple[int, ...], classes: int) -> str:
    """Check the specification: input and output, and that each weight is in the file and finite."""
    tools: Any = importlib.import_module("coremltools")
    try:
        spec = tools.utils.load_spec(str(path))
    except Exception as error:  # of protobuf or the binding
        return f"its specification cannot be read ({str(error)[:100]})"
    if spec.WhichOneof("Type") != "mlProgram":
        return "it is no ML program"
    for kind, entries, name, wanted in (
        ("input", spec.description.input, INPUT, shape),
        ("output", spec.description.output, OUTPUT, (1, classes)),
    ):
        found = {entry.name: tuple(entry.type.multiArrayType.shape) for entry in entries}
        if found != {name: wanted}:
            return f"its {kind} is {found}, not {name} {wanted}"
    return _bad_weights(path / WEIGHTS, spec.mlProgram)


def _bad_weights(path: Path, program: Any) -> str:
    content = path.read_bytes() if path.is_file() else b""
    places = set(_places(program))
    if not places:
        return "it has no weights"
    for place in places:
        if place + BLOB.size > len(content):
            return f"{path.name} ends before the weights that are at byte {place:,}"
        mark, kind, size, begin = BLOB.unpack_from(content, place)
        if mark != MARK or begin + size > len(content):
            return f"{path.name} has no weights at byte {place:,}"
        dtype = KINDS.get(kind)
        if dtype and not np.isfinite(np.frombuffer(content, dtype, size // dtype.itemsize, begin)).all():
            return f"{path.name} has weights that are not finite at byte {place:,}"
    return ""


def _places(program: Any) -> Iterator[int]:
    """Yield where in the file of the weights the tensors of a program are."""
    for function in program.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                values = list(operation.attributes.values())
                for argument in operation.inputs.values():
                    values += [
                        one.value for one in argument.arguments if one.WhichOneof("binding") == "value"
                    ]
                yield from (
                    v.blobFileValue.offset for v in values if v.WhichOneof("value") == "blobFileValue"
                )


def _open(path: Path, options: Options) -> Session:
    if sys.platform != MACOS:
        raise TutelageError(f"{path}: Core ML's files run on macOS only; use another file or machine")
    return _CoreMl(path)


RUNTIME = Runtime(
    name="coreml",
    format="coreml",
    title="Core ML",
    package="coremltools",
    makers=("coremltools",),
    extra="coreml",
    variants=(Variant("coreml", "model.mlpackage", arithmetic="f16"),),
    open=_open,
    platform=MACOS,
    inspect=_inspect,
)
