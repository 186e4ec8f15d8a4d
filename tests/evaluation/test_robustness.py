"""Corrupted images: each kind makes images worse with its severity, and the same for every model and process."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import make_splits, whole
from tutelage.evaluation.robustness import CORRUPTIONS, SEVERITIES, corrupted, robustness


class Photographs(ImageSet):
    """Gradients with colours, 300 x 280 pixels."""

    def __init__(self, size: int = 40) -> None:
        super().__init__("photographs", "photographs", [f"{i}.png" for i in range(size)])

    def image(self, index: int) -> Image.Image:
        y, x = np.mgrid[0:280, 0:300]
        waves = [128 + 90 * np.sin((x * (c + 1) + y * (index % 7 + 1)) / 9) for c in range(3)]
        return Image.fromarray(np.stack(waves, 2).astype(np.uint8))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(64, 48), (224, 224), (8, 8)])
def test_a_stronger_severity_changes_an_image_more(kind: str, size: tuple[int, int]) -> None:
    image = Photographs().image(3).resize(size)
    clean = np.asarray(image, float)
    one = CORRUPTIONS[kind]
    changes = []
    for strength in one.strengths:
        changed = one.change(image, strength, np.random.default_rng(0))
        assert (changed.size, changed.mode) == (size, "RGB")
        changes.append(np.abs(np.asarray(changed, float) - clean).mean())
    assert np.array_equal(np.asarray(image), clean)  # the image itself stays
    if min(size) > 8:  # of so few pixels, all is lost soon
        assert changes[0] > 0.5
        assert changes[-1] > changes[0]
        assert changes == sorted(changes) or kind in {"coarse pixels", "JPEG"}


def test_severities_are_drawn_by_id_and_seed_alone() -> None:
    images = Photographs()
    part = whole(images)
    for kind in CORRUPTIONS:
        first, again, other = corrupted(part, kind, 0), corrupted(part, kind, 0), corrupted(part, kind, 1)
        pixels = [np.asarray(one.image(5)) for one in (first, again, other)]
        assert pixels[0].shape == (256, 274, 3)  # larger images are resized first
        assert np.array_equal(pixels[0], pixels[1])
        alike = [np.array_equal(np.asarray(first.image(i)), np.asarray(other.image(i))) for i in range(12)]
        assert not all(alike), kind
    darkest = [np.asarray(corrupted(part, "darker", 0).image(i)).mean() for i in range(40)]
    clean = [np.asarray(images.image(i)).mean() for i in range(40)]
    factors = {round(dark / light, 2) for dark, light in zip(darkest, clean, strict=True)}
    assert len(factors) >= SEVERITIES


def test_labels_and_ids_stay() -> None:
    test = make_splits(DataRecipe(train="digits")).test
    noisy = corrupted(test, "noise", 0)
    assert noisy.ids == test.ids
    assert np.array_equal(noisy.labels, test.labels)
    assert not np.array_equal(np.asarray(noisy.image(0)), np.asarray(test.image(0)))


def test_the_interval_resamples_images_with_all_their_corruptions() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(500) < 0.5  # which images the student has right, under each corruption
    old = np.tile(easy, (8, 1))
    new = old.copy()
    gained = rng.choice(np.flatnonzero(~easy), 40, replace=False)
    new[:, gained] = True
    found = robustness({"distilled": new, "control": old}, "distilled", ["control"])
    assert found["kinds"] == list(CORRUPTIONS)
    assert found["mean"]["distilled"] == pytest.approx(100 * new.mean())
    assert found["top1"]["control"] == pytest.approx([100 * easy.mean()] * 8)
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx(100 * 40 / 500)
    # as wide as of 500 images, not of 4,000
    spread = 100 * 1.96 * np.sqrt(0.08 * 0.92 / 500)
    assert pair["high"] - pair["low"] == pytest.approx(2 * spread, rel=0.1)
