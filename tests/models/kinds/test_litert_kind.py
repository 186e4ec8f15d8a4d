"""LiteRT files as teachers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.litert_files import write_litert
from tests.helpers.refusals import model_refusal as refusal
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import normalise
from tutelage.models.registry import load_model
from tutelage.models.source import Model

SIDE, CLASSES = 8, 4
RNG = np.random.default_rng(0)
PIXELS = torch.from_numpy(RNG.integers(0, 256, (5, 3, SIDE, SIDE), dtype=np.uint8))
WEIGHT = RNG.normal(0, 0.1, (CLASSES, SIDE * SIDE * 3)).astype(np.float32)
BIAS = RNG.normal(0, 1, CLASSES).astype(np.float32)


def logits(model: Model) -> Tensor:
    found: Tensor = model.module(normalise(PIXELS, model.input_spec, torch.device("cpu")))
    return found


def linear(spec: InputSpec) -> Tensor:
    """What the layer gives for the images as a file takes them."""
    images = normalise(PIXELS, spec, torch.device("cpu")).permute(0, 2, 3, 1).flatten(1)
    return images @ torch.from_numpy(WEIGHT).T + torch.from_numpy(BIAS)


def test_a_float_file_gives_the_layers_logits(tmp_path: Path) -> None:
    path = write_litert(tmp_path / "model.tflite", WEIGHT, BIAS, SIDE)
    model = load_model(f"tflite:{path}?mean=0.5&std=0.25")
    assert model.input_spec == InputSpec(SIDE, SIDE, (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(logits(model), linear(model.input_spec), atol=1e-4, rtol=1e-4)
    (tmp_path / "preprocess.json").write_text(json.dumps({"mean": 0.1, "class_ids": list("abcd")}))
    described = load_model(f"tflite:{path}")
    assert (described.input_spec.mean, described.class_ids) == ((0.1,) * 3, tuple("abcd"))


def test_an_int8_file_is_quantised_by_its_own_scales(tmp_path: Path) -> None:
    """Input in [-1, 1], as most int8 files have it; the difference is that of the rounding."""
    inner, outer = 2 / 255, 0.1
    of_weight = float(np.abs(WEIGHT).max()) / 127
    weight = np.rint(WEIGHT / of_weight).astype(np.int8)
    bias = np.rint(BIAS / (inner * of_weight)).astype(np.int32)
    scales = ((inner, -1), (of_weight, 0), (outer, 5))
    path = write_litert(tmp_path / "model.tflite", weight, bias, SIDE, scales)
    model = load_model(f"tflite:{path}?range=[-1,1]")
    assert model.input_spec == InputSpec(SIDE, SIDE, (0.5,) * 3, (0.5,) * 3)
    found, expected = logits(model), linear(model.input_spec)
    assert found.unique().numel() > CLASSES
    assert (found - expected).abs().max() < 2 * outer


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_litert(tmp_path / "model.tflite", WEIGHT, BIAS, SIDE)
    assert "there is no file" in refusal("tflite:missing.tflite")
    assert "unknown setting 'men'" in refusal(f"tflite:{path}?men=0.5")
    (tmp_path / "noise.tflite").write_bytes(b"noise")
    assert "LiteRT cannot open it" in refusal(f"tflite:{tmp_path / 'noise.tflite'}")
    with pytest.raises(TutelageError, match="images of 8 px alone"):
        load_model(f"tflite:{path}").at(64)
