"""OpenVINO's IR, an XML file with its weights in a ``.bin`` beside it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.deploy.runtimes.base import Arithmetic, Idle, Options, Runtime, Session, Variant, damaged


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """OpenVINO's `Core`, one for the process, which lives as long as it does.

    A core's CPU plugin gives the thread a stack for signal handlers, and takes it away when the core goes. With two
    cores, of which the older goes first, the thread is left with a stack that is no longer there (OpenVINO 2026.4),
    and the next signal that Python handles (of a child that ended, or Ctrl-C) ends the process in SIGSEGV.
    """
    openvino: Any = importlib.import_module("openvino")
    return openvino.Core()


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the thread its stack for signal handlers back after code that makes OpenVINO cores of its own."""
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = ctypes.create_string_buffer(64)  # more than a `stack_t` takes
    sigaltstack(None, before)
    try:
        yield
    finally:
        sigaltstack(before, None)


def _has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _OpenVino:
    def __init__(self, path: Path, batch: int | None, arithmetic: Arithmetic, threads: int | None) -> None:
        core = openvino_core()
        _check_ir(path)
        try:
            model = core.read_model(path)
            if batch is not None:
                model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
            options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": arithmetic}
            if threads:
                options["INFERENCE_NUM_THREADS"] = threads
            compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise damaged(path, str(error)) from None
        self.num_classes = int(model.output(0).partial_shape[1].get_length())
        self._requests: Idle[Any] = Idle(compiled.create_infer_request)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._requests.one() as request:
            results = request.infer([np.ascontiguousarray(images)], share_inputs=True)
            return np.array(results[0])  # a copy, made before the next call may have the request


def _check_ir(path: Path) -> None:
    """Refuse a damaged XML early: OpenVINO would try every format that it knows, and print an error for each."""
    if not path.with_suffix(".bin").is_file():
        raise TutelageError(f"{path.with_suffix('.bin')}: missing; it belongs to {path.name}, export again")
    if not path.read_bytes().rstrip().endswith(b"</net>"):
        raise damaged(path, "it ends early")


def _open(path: Path, options: Options) -> Session:
    return _OpenVino(path, options.batch, options.arithmetic, options.threads)


def _parts(path: Path) -> tuple[Path, ...]:
    return path, path.with_suffix(".bin")


def _supports(variant: Variant) -> bool:
    return variant.arithmetic == "f32" or _has_bf16()


RUNTIME = Runtime(
    name="openvino",
    format="openvino",
    title="OpenVINO",
    package="openvino",
    makers=("onnx", "onnxscript", "openvino", "nncf"),
    extra="deploy",
    variants=(
        Variant("openvino", "model.xml"),
        # by itself OpenVINO would use bfloat16 where the CPU has it
        Variant("openvino-bf16", "model.xml", arithmetic="bf16", is_option=True),
        Variant("int8", "model-int8.xml", int8=True),
    ),
    open=_open,
    parts=_parts,
    supports=_supports,
)
