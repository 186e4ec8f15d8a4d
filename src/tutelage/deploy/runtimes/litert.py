"""LiteRT (TensorFlow Lite) files, which take one image at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from tutelage.core.litert import LiteRTFile
from tutelage.deploy.runtimes.base import Options, Runtime, Session, Variant, damaged


class _LiteRT:
    def __init__(self, path: Path, threads: int | None) -> None:
        self._open = lambda: LiteRTFile(path, threads)
        try:
            first = self._open()
        except (ValueError, RuntimeError) as error:
            raise damaged(path, str(error)) from None
        self.num_classes = first.num_outputs
        # an interpreter holds the values of one call: each call has one to itself, since threads would mix theirs
        self._idle: deque[LiteRTFile] = deque([first])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            file = self._idle.pop()
        except IndexError:
            file = self._open()
        try:
            return np.concatenate([file(np.ascontiguousarray(images[i : i + 1])) for i in range(len(images))])
        finally:
            self._idle.append(file)


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
