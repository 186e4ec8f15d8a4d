"""Tests of the JPEGs of stores, which simplejpeg decodes where it is installed: against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tutelage.data import plain_jpeg
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.parts import as_jpeg

PHOTOGRAPHS = [Image.fromarray(photograph) for photograph in load_sample_images().images]
installed = pytest.mark.skipif(plain_jpeg.simplejpeg is None, reason="needs simplejpeg")


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@installed
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("options", [{"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (0, 1)])
def test_simplejpeg_decodes_what_pillow_decodes(photograph: Image.Image, options: dict[str, int]) -> None:
    content = jpeg(photograph.resize((365, 273)), quality=95, **options)
    pixels = plain_jpeg._plain(content)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.asarray(decode(content, "photograph")))


@installed
def test_the_jpegs_of_a_store_are_decoded_by_simplejpeg() -> None:
    content = as_jpeg(PHOTOGRAPHS[0], 96)
    assert plain_jpeg._plain(content) is not None
    np.testing.assert_array_equal(plain_jpeg.jpeg_image(content, "x"), decode(content, "x"))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(PHOTOGRAPHS[0].resize((80, 60)), exif=exif)


@pytest.mark.parametrize(
    "content", [turned(), *(jpeg(PHOTOGRAPHS[1].convert(mode)) for mode in ("L", "CMYK"))]
)
def test_other_jpegs_are_left_to_pillow(content: bytes) -> None:
    assert plain_jpeg._plain(content) is None
    expected = decode(content, "other")
    np.testing.assert_array_equal(plain_jpeg.jpeg_pixels(content, "other"), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(plain_jpeg.jpeg_image(content, "other")), np.asarray(expected))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5])
def test_a_damaged_jpeg_has_pillows_reason(part: float) -> None:
    whole = jpeg(PHOTOGRAPHS[0])
    content = whole[: int(len(whole) * part)]
    with pytest.raises(UnreadableImage) as expected:
        decode(content, "bad")
    with pytest.raises(UnreadableImage) as found:
        plain_jpeg.jpeg_pixels(content, "bad")
    assert str(found.value) == str(expected.value)


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = as_jpeg(PHOTOGRAPHS[0], 96)
    monkeypatch.setattr(plain_jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(plain_jpeg.jpeg_pixels(content, "x"), np.asarray(decode(content, "x")))
