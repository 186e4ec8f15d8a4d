"""ONNX files in ONNX Runtime."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.deploy.runtimes.base import Options, Runtime, Session, Variant, damaged


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
            raise damaged(path, str(error)) from None
        self._input = self._session.get_inputs()[0].name
        self.num_classes = int(self._session.get_outputs()[0].shape[1])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]
        return logits


def external_data(onnx_file: Path) -> Path:
    """The file that holds the weights of an ONNX file, where they are too large for it."""
    return onnx_file.with_name(f"{onnx_file.name}.data")


def _open(path: Path, options: Options) -> Session:
    return _OnnxRuntime(path, options.threads)


def _parts(path: Path) -> tuple[Path, ...]:
    return path, external_data(path)


RUNTIME = Runtime(
    name="onnxruntime",
    format="onnx",
    title="ONNX",
    package="onnxruntime",
    makers=("onnx", "onnxscript", "onnxruntime", "nncf"),
    extra="deploy",
    variants=(Variant("onnx", "model.onnx"), Variant("onnx-int8", "model-int8.onnx", int8=True)),
    open=_open,
    parts=_parts,
)
