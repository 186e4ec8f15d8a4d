"""LiteRT (TensorFlow Lite) files as teachers: ``tflite:teacher.tflite``, run on the CPU (extra ``litert``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.litert import LiteRTFile
from tutelage.models.kinds.fixed import SETTINGS, Engine, Port, described, fixed_model
from tutelage.models.kinds.names import split_settings
from tutelage.models.source import Model


class LiteRTEngine(Engine):
    """A LiteRT interpreter. It runs as many images at a time as the file names, mostly one."""

    def __init__(self, path: Path) -> None:
        self.file = LiteRTFile(path, torch.get_num_threads())
        shape = self.file.shape
        self.batch = shape[0] if shape else 1
        self.port = Port((None, *shape[1:]), self.file.dtype, self.file.scale, self.file.zero_point)

    def call(self, images: np.ndarray) -> np.ndarray:
        """Run the first output; quantised ones are made real numbers."""
        return self.file(images)


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load a LiteRT file.

    Raises:
        TutelageError: it is missing or damaged, or its input is not described.
    """
    spec = f"tflite:{where}"
    name, given = split_settings(where, SETTINGS)
    path = Path(name)
    if not path.is_file():
        raise TutelageError(
            f"{spec}: there is no file {path}; write tflite:FILE, such as tflite:teacher.tflite"
        )
    try:
        engine = LiteRTEngine(path)
    except ImportError:
        raise TutelageError(f"{spec}: needs ai-edge-litert; run `pip install 'tutelage[litert]'`") from None
    except (ValueError, RuntimeError) as error:
        raise TutelageError(f"{path}: LiteRT cannot open it ({one_line(error)[:200]})") from None
    model = fixed_model(spec, path, engine, described(path, {}, given))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)
