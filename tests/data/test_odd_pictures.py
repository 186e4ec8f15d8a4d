"""Pictures of odd sizes: long thin ones take no longer than others, huge ones are scaled while they are decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data import decode as decoding
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.input_spec import CROP_MODES, InputSpec, eval_pixels
from tutelage.data.splits import make_splits


@pytest.mark.parametrize("size", [(60_000, 10), (10, 60_000), (30_000, 1), (1, 30_000), (9_000, 30)])
@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("spec", [InputSpec(224, 224), InputSpec(64, 96, crop_pct=1.0)])
def test_a_long_thin_image_is_not_resized_whole(size: tuple[int, int], mode: str, spec: InputSpec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    spec = InputSpec(spec.height, spec.width, crop_pct=spec.crop_pct, crop_mode=mode)
    resized: list[int] = []
    original = Image.Image.resize

    def resize(self: Image.Image, to: tuple[int, int], *args: object, **options: object) -> Image.Image:
        resized.append(to[0] * to[1])
        return original(self, to, *args, **options)  # type: ignore[arg-type]

    image = Image.fromarray(pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        assert eval_pixels(image, spec).shape == (spec.height, spec.width, 3)
    assert max(resized) <= 64 * spec.height * spec.width


@pytest.mark.parametrize("size", [(6_000, 20), (20, 6_000), (9_000, 7)])
def test_its_crop_shows_the_same_as_of_the_image_resized_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    image, spec = Image.fromarray(smooth), InputSpec(24, 24, crop_pct=0.9)
    part = eval_pixels(image, spec).astype(int)
    monkeypatch.setattr("tutelage.data.input_spec.LONG", 10**9)
    assert np.abs(part - eval_pixels(image, spec)).max() <= 2


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(stream, "JPEG", quality=30)
    return stream.getvalue()


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 10,000 pixels were as many as 89 million are."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(decoding, "DECODED_PIXELS", 10_000)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((100, 100), None, (100, 100)),
        ((160, 120), 20_000, (80, 60)),
        ((120, 160), 20_000, (60, 80)),
        ((400, 300), 200_000, (100, 75)),  # more than twice Pillow's limit, which is an error of its own
        ((800, 400), 10**7, (100, 50)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_huge_image_is_scaled_down_where_the_limit_is_raised(
    size: tuple[int, int], limit: int | None, expected: tuple[int, int], kind: str
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(stream, kind)
    image = decode(stream.getvalue(), "x", limit)
    assert image.size == expected
    assert np.allclose(image.getpixel((9, 9)), (200, 30, 40), atol=4)
    assert Image.MAX_IMAGE_PIXELS == 10_000


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("limit", [None, 15_000])
def test_beyond_the_limit_it_is_refused(limit: int | None) -> None:
    with pytest.raises(UnreadableImage, match=f"more than {limit or 10_000} pixels.*decompression bomb"):
        decode(jpeg(160, 120), "x", limit)
    assert Image.MAX_IMAGE_PIXELS == 10_000


def test_of_a_huge_jpeg_only_a_part_is_decoded() -> None:
    content = jpeg(12_000, 8_000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(content, "x")
    image = decode(content, "x", 100_000_000)
    assert image.size == (6_000, 4_000)


def test_the_recipe_raises_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(decoding, "DECODED_PIXELS", 10_000)
    for cls in "ab":
        (tmp_path / cls).mkdir()
        for i in range(9):
            (tmp_path / cls / f"{i}.jpg").write_bytes(jpeg(200 + i, 100))
    with pytest.raises(UnreadableImage):
        make_splits(DataRecipe(train=str(tmp_path))).train.image(0)
    splits = make_splits(DataRecipe(train=str(tmp_path), max_megapixels=0.03))
    assert splits.train.image(0).size[1] == 50
    with pytest.raises(TutelageError, match="more than 15000 pixels"):
        make_splits(DataRecipe(train=str(tmp_path), max_megapixels=0.015)).train.image(0)
