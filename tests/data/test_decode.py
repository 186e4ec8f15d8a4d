"""Whatever a picture's mode, it becomes upright RGB; whatever is wrong with it is named."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tutelage.data.decode import UnreadableImage, decode

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def centre(content: bytes) -> tuple[int, ...]:
    image = decode(content, "x")
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_formats(kind):
    options = {"quality": 100} if kind in {"JPEG", "WEBP"} else {}
    got = centre(encoded(Image.new("RGB", (16, 16), RED), kind, **options))
    assert np.allclose(got, RED, atol=6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16"])
def test_white_stays_white_in_every_mode(mode):
    white = (
        Image.new("I;16", (9, 9), 65535)
        if mode == "I;16"
        else Image.new("RGB", (9, 9), "white").convert(mode)
    )
    assert centre(encoded(white)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    got = np.asarray(decode(encoded(Image.fromarray(ramp)), "x"))[..., 0]
    assert np.array_equal(got.ravel(), np.arange(256))


def test_floating_point_tiff():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    got = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF"), "x"))[..., 0]
    assert np.array_equal(got.ravel(), np.arange(256))


def test_cmyk_jpeg():
    got = centre(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=100))
    assert np.allclose(got, RED, atol=12)


def test_transparency_lies_over_white():
    assert centre(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert centre(encoded(palette, transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste(RED, (0, 0, 16, 16))  # red on the left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a camera would have applied
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(stored, exif=exif), "x")
    assert image.size == (32, 16)
    assert image.getpixel((4, 8)) == RED
    assert image.getpixel((28, 8)) == (0, 0, 0)


def test_a_damaged_exif_block_costs_no_pixels():
    image = Image.new("RGB", (8, 8), RED)
    assert np.allclose(centre(encoded(image, "JPEG", quality=100, exif=b"Exif\0\0garbage")), RED, atol=6)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"hello, world", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
        (png_of(10_000, 10_000), "decompression bomb"),
        (png_of(2_000_000, 2_000_000), "decompression bomb"),
    ],
    ids=["empty", "text", "eps", "cut", "bomb", "huge bomb"],
)
def test_what_cannot_be_decoded_is_named(content, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(content, "val/cat/7.png")
    assert caught.value.image_id == "val/cat/7.png"
    assert "val/cat/7.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        decode(tmp_path / "gone.png", "gone.png")
    with pytest.raises(UnreadableImage, match=r"gone|folder"):
        decode(tmp_path, "folder")


def test_mutated_images_are_decoded_or_named():
    """300 files with random bytes changed: an image, or `UnreadableImage`, and nothing else."""
    rng = random.Random(0)
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    originals = [encoded(picture, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]
    named = 0
    for _ in range(300):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 12)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        del content[rng.choice([len(content), rng.randrange(len(content))]) :]
        try:
            assert decode(bytes(content), "mutant").mode == "RGB"
        except UnreadableImage:
            named += 1
    assert 0 < named < 300
