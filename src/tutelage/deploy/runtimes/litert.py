"""LiteRT (TensorFlow Lite) files, which take one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tutelage.core.litert import LiteRTFile
from tutelage.deploy.runtimes.base import Idle, Options, Runtime, Session, Variant, damaged


class _LiteRT:
    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            self._interpreters = Idle(lambda: LiteRTFile(path, threads))
        except (ValueError, RuntimeError) as error:
            raise damaged(path, str(error)) from None
        self.num_classes = self._interpreters.first.num_outputs

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._interpreters.one() as file:
            return np.concatenate([file(np.ascontiguousarray(images[i : i + 1])) for i in range(len(images))])


def _open(path: Path, options: Options) -> Session:
    return _LiteRT(path, options.threads)


RUNTIME = Runtime(
    name="litert",
    format="litert",
    title="LiteRT",
    package="ai_edge_litert",
    makers=("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
    extra="litert",
    maker_extra="litert-export",
    variants=(
        Variant("litert", "model.tflite"),
        Variant("litert-int8", "model-int8.tflite", int8=True),
        Variant("litert-int4", "model-int4.tflite", int8=True, int4=True),
    ),
    open=_open,
)
