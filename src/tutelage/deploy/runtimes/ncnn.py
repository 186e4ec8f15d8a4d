"""ncnn's files: the network in a ``.param``, a text, and its weights in a ``.bin`` beside it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.deploy.runtimes.base import Arithmetic, Options, Runtime, Session, Variant, damaged

MAGIC = "7767517"  # the first line of every `.param`


class _Ncnn:
    def __init__(self, path: Path, arithmetic: Arithmetic, threads: int | None) -> None:
        ncnn: Any = importlib.import_module("ncnn")
        shape = _input_shape(path)
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        if threads:
            self._net.opt.num_threads = threads
        half = arithmetic == "f16"
        self._net.opt.use_fp16_storage = half
        self._net.opt.use_fp16_packed = half
        self._net.opt.use_fp16_arithmetic = half
        # ncnn itself prints what is wrong with a file, and returns a number
        if self._net.load_param(str(path)):
            raise damaged(path, "ncnn cannot read it")
        if self._net.load_model(str(_weights(path))):
            raise damaged(_weights(path), "ncnn cannot read it")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]
        self.num_classes = self(np.zeros((1, *shape), np.float32)).shape[1]  # which the file does not say

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._one(image) for image in np.ascontiguousarray(images, np.float32)])

    def _one(self, image: np.ndarray) -> np.ndarray:
        extractor = self._net.create_extractor()  # one for each image, so that threads share nothing
        given = self._mat(image)  # refers to the memory of `image`
        failed = extractor.input(self._input, given)
        if not failed:
            failed, found = extractor.extract(self._output)
        if failed:
            raise TutelageError(f"ncnn cannot run the model on an image of {image.shape}; export again")
        return np.array(found, np.float32).reshape(-1)


def _input_shape(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of the input, as the exporter has written them into the line of the input."""
    weights = _weights(path)
    if not weights.is_file():
        raise TutelageError(f"{weights}: missing; it belongs to {path.name}, export again")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        layers = int(lines[1].split()[0])
        given = dict(entry.split("=") for entry in lines[2].split() if "=" in entry)
        shape = int(given["2"]), int(given["1"]), int(given["0"])
    except (IndexError, KeyError, ValueError):
        raise damaged(path, "no size of an input in its third line") from None
    if lines[0].strip() != MAGIC or len(lines) < 2 + layers:
        raise damaged(path, "it ends early")
    return shape


def _weights(path: Path) -> Path:
    return path.with_suffix(".bin")


def _open(path: Path, options: Options) -> Session:
    return _Ncnn(path, options.arithmetic, options.threads)


def _parts(path: Path) -> tuple[Path, ...]:
    return path, _weights(path)


RUNTIME = Runtime(
    name="ncnn",
    format="ncnn",
    title="ncnn",
    package="ncnn",
    makers=("pnnx", "ncnn"),
    extra="ncnn",
    variants=(
        Variant("ncnn", "model.ncnn.param"),
        Variant("ncnn-fp16", "model-fp16.ncnn.param", arithmetic="f16"),
    ),
    open=_open,
    parts=_parts,
)
