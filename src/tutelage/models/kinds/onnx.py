"""ONNX files as teachers: ``onnx:teacher.onnx``, run by ONNX Runtime (extra ``deploy``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tutelage.core.errors import TutelageError, one_line
from tutelage.models.kinds.fixed import SETTINGS, Engine, Port, described, fixed_model
from tutelage.models.kinds.names import split_settings
from tutelage.models.source import Model

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}


class OnnxEngine(Engine):
    """An ONNX Runtime session."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings about its own graph optimisations help no user
        available = onnxruntime.get_available_providers()
        wanted = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in available]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        first = self.session.get_inputs()[0]
        self.name = first.name
        shape = tuple(side if isinstance(side, int) else None for side in first.shape)
        self.port = Port(shape, np.dtype(TYPES.get(first.type, "float32")))
        self.batch = shape[0] if shape else None

    def call(self, images: np.ndarray) -> np.ndarray:
        """Run the first output."""
        return np.asarray(self.session.run(None, {self.name: images})[0])


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load an ONNX file.

    Raises:
        TutelageError: it is missing or damaged, or its input is not described.
    """
    spec = f"onnx:{where}"
    name, given = split_settings(where, SETTINGS)
    path = Path(name)
    if not path.is_file():
        raise TutelageError(f"{spec}: there is no file {path}; write onnx:FILE, such as onnx:teacher.onnx")
    try:
        engine = OnnxEngine(path)
    except ImportError:
        raise TutelageError(f"{spec}: needs onnxruntime; run `pip install 'tutelage[deploy]'`") from None
    except Exception as error:  # ONNX Runtime has an error class for each of its codes
        raise TutelageError(f"{path}: ONNX Runtime cannot open it ({one_line(error)[:200]})") from None
    metadata = engine.session.get_modelmeta().custom_metadata_map
    model = fixed_model(spec, path, engine, described(path, metadata, given))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)
