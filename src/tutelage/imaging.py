"""Any picture a user may have, as upright RGB. Needs Pillow and NumPy only."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


class BadImageError(Exception):
    """A picture that cannot be decoded; the message is the reason, in a few words."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Turned upright by its EXIF orientation, then RGB.

    Transparency is dropped, as timm and torchvision drop it; 16-bit and float greys are scaled to 8 bits,
    where Pillow alone would clip them to white.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(upright)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def decode(source: Path | bytes) -> Image.Image:
    """Open and decode a picture, fully.

    Args:
        source: a file, or the content of one.

    Raises:
        BadImageError: it is missing, empty, truncated, no picture, or absurdly large.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except IsADirectoryError:
        raise BadImageError("a folder, not an image") from None
    except UnidentifiedImageError:
        raise BadImageError("not an image that Pillow can read") from None
    # Pillow's decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"damaged image ({reason})") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    grey = np.nan_to_num(np.asarray(image).astype(np.float64))
    return Image.fromarray(np.clip(np.rint(grey * (255 / _white(image.mode, grey))), 0, 255).astype(np.uint8))


def _white(mode: str, grey: np.ndarray) -> float:
    """The value of white. Only the ``I;16`` modes say it; of the others the values tell."""
    if mode.startswith("I;16"):
        return 65535.0
    brightest = float(grey.max(initial=0))
    if mode == "F" and brightest <= 1:
        return 1.0
    return 255.0 if brightest <= 255 else 65535.0
