"""All runtimes, the files that they run, and a model file opened by the one that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.deploy.runtimes import coreml, executorch, litert, ncnn, onnxruntime, openvino
from tutelage.deploy.runtimes.base import Arithmetic, Options, Runtime, Session, Variant

RUNTIMES: tuple[Runtime, ...] = (
    onnxruntime.RUNTIME,
    openvino.RUNTIME,
    executorch.RUNTIME,
    ncnn.RUNTIME,
    litert.RUNTIME,
    coreml.RUNTIME,
)
VARIANTS: tuple[Variant, ...] = tuple(variant for runtime in RUNTIMES for variant in runtime.variants)
# The files that `Predictor` prefers; the others follow in the order of the table. ONNX Runtime is often slower in int8.
PREFERRED = ("int8", "openvino", "onnx", "onnx-int8")


def runtime_of(file: str | Path) -> Runtime:
    """The runtime of a model file, by the file's suffix."""
    suffix = Path(file).suffix
    return next(one for one in RUNTIMES if suffix in {Path(variant.file).suffix for variant in one.variants})


def runtimes_of(formats: Sequence[str]) -> list[Runtime]:
    """The runtimes of these formats, in the order of the table.

    Raises:
        TutelageError: there is no such format, or none is named.
    """
    known = [one.format for one in RUNTIMES]
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise TutelageError(
            f"format {', '.join(unknown) or '(none)'}: there is no such format; choose from {', '.join(known)}, "
            "such as --format onnx"
        )
    return [one for one in RUNTIMES if one.format in formats]


def any_int8(formats: Sequence[str]) -> bool:
    """Whether one of these formats has quantised files, which need images to calibrate on."""
    return any(variant.int8 for runtime in runtimes_of(formats) for variant in runtime.variants)


def any_int4(formats: Sequence[str]) -> bool:
    """Whether one of these formats has files with weights in 4 bits."""
    return any(variant.int4 for runtime in runtimes_of(formats) for variant in runtime.variants)


def preferred() -> list[Variant]:
    """One variant for each model file, the first being the one that `Predictor` uses where it can."""
    ranks = {role: rank for rank, role in enumerate(PREFERRED)}
    files = [variant for variant in VARIANTS if not variant.is_option]
    return sorted(files, key=lambda variant: ranks.get(variant.role, len(ranks)))


def files_of(file: Path) -> tuple[Path, ...]:
    """A model file and all that belongs to it, some of which may not be there, such as the weights of an ONNX file."""
    return runtime_of(file).parts(file)


def open_session(
    path: Path, *, batch: int | None = None, arithmetic: Arithmetic = "f32", threads: int | None = None
) -> Session:
    """Load a model file for the CPU.

    Args:
        path: with a suffix that one of `VARIANTS` has, such as ``.xml`` (OpenVINO) or ``.onnx``.
        batch: size of every batch, which makes OpenVINO faster; None: any size.
        arithmetic: precision of layers that are not int8, in OpenVINO only, which by itself would use bfloat16
            where the CPU has it.
        threads: of the CPU; None: as many as the runtime chooses.

    Raises:
        TutelageError: the runtime is not installed, or the file is missing or damaged.
    """
    if not path.exists():
        raise TutelageError(f"{path}: no such model file; export again")
    runtime = runtime_of(path)
    try:
        return runtime.open(path, Options(batch, arithmetic, threads))
    except ImportError:
        raise TutelageError(f"{path.name} needs {runtime.name}: {runtime.remedy}") from None
