"""LiteRT files of small networks, made as an export makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.formats import litert
from tutelage.deploy.formats.making import Making, require
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.runtimes.registry import open_session, runtimes_of
from tutelage.models.source import Model

SIDE, CLASSES, CHANNELS = 32, 64, 64
RNG = np.random.default_rng(0)
NAMES = tuple(map(str, range(CLASSES)))


def needs_converter() -> None:
    """Skip the test where LiteRT files cannot be made here."""
    for name in ("litert_torch", "ai_edge_quantizer"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs the extra `litert-export`, which `make setup` installs")
    require(runtimes_of(["litert"]))


def pictures(count: int = 12) -> Pictures:
    pixels = RNG.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Pictures(pixels, np.zeros(count, np.int64))


def made(
    module: nn.Module,
    directory: Path,
    spec: InputSpec,
    given: Pictures,
    said: list[str],
    int4: bool = False,
    max_drop: float = 1.0,
) -> Making:
    """Write the files of a network, which is right about all of its images."""
    with torch.no_grad():
        images = torch.from_numpy(normalised(given.pixels, spec))
        labels = torch.cat([module(one[None]) for one in images]).argmax(1).numpy()
    model = Model("net", "net", module, spec, None, None, "test", False, CLASSES)
    making = Making(
        model,
        directory,
        Manifest("net", spec, NAMES, NAMES),
        said.append,
        given,
        Pictures(given.pixels, labels),
        max_drop,
        int4,
    )
    litert.make(making)
    return making


def answers(making: Making, name: str, images: np.ndarray) -> np.ndarray:
    return open_session(making.directory / name, threads=1)(images)
