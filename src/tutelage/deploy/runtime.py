"""Run a deployed file: from normalised images to logits. Needs NumPy, and the runtime when a file is opened."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import sys
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from tutelage.core.errors import TutelageError

Arithmetic = Literal["f32", "bf16"]
RUNTIMES = {".xml": "openvino", ".onnx": "onnxruntime"}
REMEDY = "run `pip install tutelage[deploy]`"


class Session(Protocol):
    """A loaded model, which any number of threads may call at the same time."""

    num_classes: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give float32 logits (B, C) of normalised float32 images (B, 3, H, W)."""


def open_session(
    path: Path, *, batch: int | None = None, arithmetic: Arithmetic = "f32", threads: int | None = None
) -> Session:
    """Load a model file for the CPU.

    Args:
        path: ``.xml`` (OpenVINO, with its ``.bin`` beside it) or ``.onnx``.
        batch: size of every batch, which makes OpenVINO faster; None: any size.
        arithmetic: precision of layers that are not int8, in OpenVINO only, which by itself would use bfloat16
            where the CPU has it.
        threads: of the CPU; None: as many as the runtime chooses.

    Raises:
        TutelageError: the runtime is not installed, or the file is missing or damaged.
    """
    if not path.is_file():
        raise TutelageError(f"{path}: no such model file; export again")
    try:
        if path.suffix == ".xml":
            return _OpenVino(path, batch, arithmetic, threads)
        return _OnnxRuntime(path, threads)
    except ImportError:
        raise TutelageError(f"{path.name} needs {RUNTIMES[path.suffix]}: {REMEDY}") from None


def has_runtime(suffix: str) -> bool:
    """Whether the runtime for files of this suffix is installed."""
    return importlib.util.find_spec(RUNTIMES[suffix]) is not None


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


def has_bf16() -> bool:
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
            raise _damaged(path, str(error)) from None
        self.num_classes = int(model.output(0).partial_shape[1].get_length())
        self._new_request = compiled.create_infer_request
        # a request holds the buffers of one call: each call has one to itself, since threads would read each other's
        self._idle: deque[Any] = deque([self._new_request()])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._new_request()
        try:
            results = request.infer([np.ascontiguousarray(images)], share_inputs=True)
            return np.array(results[0])  # a copy, made before the next call may have the request
        finally:
            self._idle.append(request)


class _OnnxRuntime:
    def __init__(self, path: Path, threads: int | None) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # its warnings only concern graph optimisations
        options.intra_op_num_threads = threads or 0
        # idle threads that spin occupy the cores: PyTorch, measured in turns with it, was 3 times slower
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # the exceptions of the binding have no common base class but Exception
        except Exception as error:
            raise _damaged(path, str(error)) from None
        self._input = self._session.get_inputs()[0].name
        self.num_classes = int(self._session.get_outputs()[0].shape[1])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]
        return logits


def _check_ir(path: Path) -> None:
    """Refuse a damaged XML early: OpenVINO would try every format that it knows, and print an error for each."""
    if not path.with_suffix(".bin").is_file():
        raise TutelageError(f"{path.with_suffix('.bin')}: missing; it belongs to {path.name}, export again")
    if not path.read_bytes().rstrip().endswith(b"</net>"):
        raise _damaged(path, "it ends early")


def _damaged(path: Path, message: str) -> TutelageError:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Exception from" not in line), "unreadable")
    return TutelageError(f"{path}: damaged model file ({reason[:160]}); export again, or copy it again")
