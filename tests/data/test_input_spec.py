"""The evaluation transform is timm's, pixel for pixel, without torch."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import CROP_MODES, InputSpec, eval_pixels, normalised


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    to=st.tuples(st.integers(24, 120), st.integers(24, 120)) | st.integers(24, 120).map(lambda s: (s, s)),
    crop_pct=st.floats(0.5, 1.2),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    mode=st.sampled_from(CROP_MODES),
)
def test_evaluation_pixels_are_timms(size, to, crop_pct, interpolation, mode):
    cfg = {
        "input_size": (3, *to),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "crop_mode": mode,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    timms = timm.data.create_transform(**cfg, is_training=False, use_prefetcher=True)(noise(*size))
    expected = np.asarray(timms).transpose(1, 2, 0)
    with patch("tutelage.data.input_spec.LONG", 10**9):  # test_odd_pictures.py tests what is done beyond it
        pixels = eval_pixels(noise(*size), InputSpec.of(cfg))
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", CROP_MODES)
def test_a_line_of_pixels_is_still_an_image(mode):
    """timm fails here: the short side would be resized to nothing."""
    spec = InputSpec(8, 8, crop_mode=mode)
    assert eval_pixels(noise(1, 40), spec).shape == (8, 8, 3)
    assert eval_pixels(noise(40, 1), spec).shape == (8, 8, 3)


def test_normalised_is_timms_to_tensor_and_normalize():
    spec = InputSpec(48, 48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=1.0)
    timms = timm.data.create_transform(
        (3, 48, 48), mean=spec.mean, std=spec.std, crop_pct=1.0, interpolation="bicubic"
    )
    mine = normalised(eval_pixels(noise(60, 50), spec), spec)
    assert mine.shape == (3, 48, 48)
    assert mine.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(mine), timms(noise(60, 50)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "efficientvit_b1", "resnet18", "vit_tiny_patch16_224"]
)
def test_of_a_models_pretrained_cfg(name):
    cfg = timm.get_pretrained_cfg(name)
    spec = InputSpec.of(cfg.to_dict())
    resolved = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    assert (spec.height, spec.width) == resolved["input_size"][1:]
    assert (spec.mean, spec.std, spec.crop_pct) == (resolved["mean"], resolved["std"], resolved["crop_pct"])
    assert (spec.interpolation, spec.crop_mode) == (resolved["interpolation"], resolved["crop_mode"])
    assert InputSpec.of(resolved) == spec
    assert InputSpec.from_dict(spec.to_dict()) == spec


def test_at_changes_the_resolution_only():
    spec = InputSpec(224, 192, crop_pct=0.9, interpolation="bilinear")
    assert spec.at(96) == InputSpec(96, 96, crop_pct=0.9, interpolation="bilinear")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"interpolation": "cubic"}, "interpolation 'cubic'"),
        ({"crop_mode": "centre"}, "crop_mode 'centre'"),
        ({"crop_pct": 0}, "crop_pct 0"),
        ({"height": 0}, "input size 0x8"),
        ({"std": [0.1, 0.1, 0.0]}, "std above 0"),
        ({"colour": 1}, "colour"),
        ({"mean": "bright"}, "could not convert"),
    ],
)
def test_an_impossible_spec_is_named(change, named):
    with pytest.raises(TutelageError, match=named):
        InputSpec.from_dict(InputSpec(8, 8).to_dict() | change)


def test_needs_no_torch():
    code = "import sys, tutelage.data.input_spec, tutelage.data.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
