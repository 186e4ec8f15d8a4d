"""Plain JPEGs decoded by simplejpeg where it is installed (extra `fast`): Pillow's pixels in less time."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tutelage.data.decode import decode

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
MOST_PIXELS = 2**24  # of an image decoded here; decode() has rules for larger ones
APP1, SCAN = 0xE1, 0xDA  # of JPEG: metadata that may turn the image (EXIF, XMP), and the picture's data


def jpeg_pixels(content: bytes, image_id: str) -> np.ndarray:
    """The pixels of an image of a store: those that `decode` gives, uint8 (H, W, 3).

    A JPEG with metadata, of other colours or that simplejpeg refuses is left to `decode`.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    pixels = _plain(content)
    return np.asarray(decode(content, image_id)) if pixels is None else pixels


def jpeg_image(content: bytes, image_id: str) -> Image.Image:
    """As `jpeg_pixels`, but an RGB image."""
    pixels = _plain(content)
    return decode(content, image_id) if pixels is None else Image.fromarray(pixels)


def _plain(content: bytes) -> np.ndarray | None:
    if simplejpeg is None or not _without_metadata(content):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours != "YCbCr" or height * width > MOST_PIXELS:
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(content)
    except ValueError:  # Pillow decodes it, or says why it cannot
        return None
    return pixels


def _without_metadata(content: bytes) -> bool:
    """Whether no segment before the picture's data may turn the image. Only the segments' heads are read."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] not in (APP1, SCAN):
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return content[at : at + 2] == bytes((0xFF, SCAN))
