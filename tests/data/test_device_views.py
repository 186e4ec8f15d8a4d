"""Views that are rendered in batches are those that Pillow renders, up to one level in a few values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.core.recipe import ViewRecipe
from tutelage.data import device_views, loading, rendering
from tutelage.data.device_views import can_render, handed_on, packed_batch, render
from tutelage.data.input_spec import IdInput, InputSpec
from tutelage.data.joined import join
from tutelage.data.loading import BadImages, eval_loader, train_loader, view_loader
from tutelage.data.packed import opened
from tutelage.data.packing import fill
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import View, ViewPolicy

CPU = torch.device("cpu")
SPECS = [InputSpec(56, 56), InputSpec(40, 72, mean=(0.2, 0.4, 0.9), interpolation="bilinear")]
ALL = {"flip": 0.5, "blur": 0.5, "greyscale": 0.3, "colour": 0.4, "cutout": 0.5}


def photograph(seed: int) -> Image.Image:
    """Noise of several grains, of a size of its own."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(60, 130, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    fine = rng.normal(0, 40, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))


def apart(views: list[View], images: list[Image.Image], specs: list[InputSpec] = SPECS) -> np.ndarray:
    """How far each value is from Pillow's, in levels."""
    parts = [handed_on(np.asarray(image), view, specs) for image, view in zip(images, views, strict=True)]
    handed = packed_batch([part[0] for part in parts], [part[1] for part in parts])
    assert handed is not None
    found = []
    for spec, batch in zip(specs, render(handed, specs, CPU), strict=True):
        assert batch.shape == (len(views), 3, spec.height, spec.width)
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous(memory_format=torch.channels_last)
        expected = np.stack([view.pixels(image, spec) for image, view in zip(images, views, strict=True)])
        found.append(np.abs(batch.permute(0, 2, 3, 1).numpy().astype(int) - expected).ravel())
    return np.concatenate(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 0.5},
        {"flip": 0, "colour": 0.4},
        {"flip": 0, "greyscale": 1.0},
        {"flip": 0, "blur": 1.0},
        {"flip": 0, "cutout": 1.0},
        ALL,
    ],
    ids=["flip", "colour", "greyscale", "blur", "cutout", "all"],
)
def test_views_are_those_of_pillow(settings: dict) -> None:
    policy = ViewPolicy(ViewRecipe(crop_scale=(0.1, 1.0), **settings))
    images = [photograph(seed) for seed in range(48)]
    views = [policy.draw(image.size, seed) for seed, image in enumerate(images)]
    levels = apart(views, images)
    assert (levels == 0).mean() >= 0.9995
    assert (levels <= 1).mean() >= 0.9999
    assert levels.max() <= 6


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2), (56, 56), (57, 300), (700, 90)])
def test_images_of_every_shape_have_views(size: tuple[int, int]) -> None:
    """Enlarged, left as they are, and shrunk to a twentieth."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    policy = ViewPolicy(ViewRecipe(crop_scale=(0.1, 1.0), crop_ratio=(0.2, 5.0)))
    views = [View((0, 0, 1, 1)), *(policy.draw(size, seed) for seed in range(7))]
    levels = apart(views, [image] * 8)
    assert (levels <= 1).mean() >= 0.9999
    assert levels.max() <= 2


def test_no_more_is_handed_on_than_the_views_need() -> None:
    image = photograph(3)
    pixels, row = handed_on(np.asarray(image), View((0.25, 0.25, 0.5, 0.5)), SPECS)
    assert pixels.shape[0] < 0.4 * image.height
    assert pixels.shape[1] < 0.4 * image.width
    assert row[4:6].tolist() == [pixels.shape[1], pixels.shape[0]]


def test_a_batch_that_would_be_mostly_padding_is_not_handed_on() -> None:
    wide, high = np.zeros((4, 100, 3), np.uint8), np.zeros((100, 4, 3), np.uint8)
    row = np.zeros(20)
    assert packed_batch([wide, high], [row, row]) is None
    assert packed_batch([wide, wide], [row, row]) is not None


@pytest.fixture
def stored(tmp_path: Path) -> Subset:
    """A packed store of 22 photographs; the third file is no image."""
    for number in range(22):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(path)
    (tmp_path / "photos" / "a" / "04.jpg").write_bytes(b"no image")
    files = whole(open_source(str(tmp_path / "photos")))
    fill(files, 64, tmp_path / "store", 10, workers=0)
    copy = opened(files, 64, tmp_path / "store")
    assert copy is not None
    return copy


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_hand_on_what_they_would_render(
    stored: Subset, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = ViewPolicy(ViewRecipe(**ALL))
    options = {"batch_size": 6, "seed": 3, "epoch": 2, "workers": workers}
    rendered = list(train_loader(stored, policy, SPECS, **options, bad=BadImages(1)))
    for module in (loading, rendering):
        monkeypatch.setattr(module, "gpu_in_use", lambda: CPU)
    calls = []
    monkeypatch.setattr(loading, "render", lambda *of: calls.append(1) or render(*of))
    bad = BadImages(1)
    handed = list(train_loader(stored, policy, SPECS, **options, bad=bad))
    assert len(calls) == len(rendered) == 3
    assert list(bad.reasons) == ["a/04.jpg"]
    for one, other in zip(rendered, handed, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in ("index", "view", "label"))
        for pillow, device in zip(one["images"], other["images"], strict=True):
            assert pillow.shape == device.shape
            levels = (pillow.int() - device.int()).abs()
            assert (levels <= 1).float().mean() > 0.9999
            assert levels.max() <= 6
    joined = join(stored, stored)
    list(view_loader(joined, policy, SPECS, [np.arange(5)], seed=0, view=0, bad=BadImages(2)))
    assert len(calls) == 4
    list(eval_loader(stored, SPECS, 8, 0, bad=BadImages(1)))  # evaluation is rendered once and kept
    files = Subset(open_source("digits"), np.arange(12), tuple("0123456789"))
    list(train_loader(files, policy, SPECS, **options))
    list(train_loader(stored, ViewPolicy(ViewRecipe(rotation=5)), SPECS, **options, bad=BadImages(1)))
    assert len(calls) == 4


def test_a_batch_with_a_very_long_image_is_rendered_by_the_loader(
    stored: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (loading, rendering):
        monkeypatch.setattr(module, "gpu_in_use", lambda: CPU)
    monkeypatch.setattr(device_views, "MOST_PADDING", 1)
    monkeypatch.setattr(loading, "render", lambda *of: pytest.fail("handed on"))
    policy = ViewPolicy(ViewRecipe())
    (batch,) = view_loader(stored, policy, SPECS, [np.arange(8)], seed=0, view=0, bad=BadImages(1))
    monkeypatch.setattr(rendering, "gpu_in_use", lambda: None)
    (plain,) = view_loader(stored, policy, SPECS, [np.arange(8)], seed=0, view=0, bad=BadImages(1))
    assert all(torch.equal(one, other) for one, other in zip(batch["images"], plain["images"], strict=True))


def test_what_is_left_to_pillow() -> None:
    assert can_render(SPECS, 0)
    assert not can_render(SPECS, 10)
    assert not can_render([*SPECS, InputSpec(8, 8, interpolation="nearest")], 0)
    assert not can_render([*SPECS, IdInput()], 0)
