"""Decode images to upright RGB. Needs only Pillow and NumPy, so that a deployed predictor can use it."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tutelage.core.errors import TutelageError, one_line

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".jp2", ".avif"}
)
# Of Pillow's formats those that hold photographs and start no other program (EPS runs Ghostscript).
_WANTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)


class UnreadableImage(TutelageError):  # noqa: N818 - the field's word, and what loaders count
    """One image cannot be decoded.

    Attributes:
        image_id: its id in its source.
        reason: why, in a few words.
    """

    def __init__(self, image_id: str, reason: str) -> None:
        super().__init__(f"{image_id}: cannot be decoded ({reason}); replace or remove it")
        self.image_id = image_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.image_id, self.reason)


def decode(content: Path | bytes, image_id: str) -> Image.Image:
    """Decode a file, or the content of one, to upright RGB.

    Raises:
        UnreadableImage: it is missing, damaged, of another format, or larger than Pillow's
            ``MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, once an image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            stream = io.BytesIO(content) if isinstance(content, bytes) else content
            with Image.open(stream, formats=FORMATS) as image:
                return upright_rgb(image)
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            raise UnreadableImage(image_id, _reason(error)) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, rotated by its EXIF orientation, with transparency over white."""
    image.load()
    with contextlib.suppress(Exception):  # a damaged EXIF block: the pixels are still good
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of more than eight bits to eight; Pillow's own conversion would clip them to white."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float64))
    scaled = np.rint(grey * (255 / _white(image.mode, grey)))
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _white(mode: str, grey: np.ndarray) -> float:
    """The value of white. Only the ``I;16`` modes define it; for the others it is guessed from the values."""
    if mode.startswith("I;16"):
        return 65535.0
    brightest = float(grey.max(initial=0))
    if mode == "F" and brightest <= 1:
        return 1.0
    return 255.0 if brightest <= 255 else 65535.0


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels, refused as a decompression bomb"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of an unsupported format"
    return one_line(error)[:200]
