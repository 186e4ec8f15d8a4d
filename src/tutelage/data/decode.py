"""Decode images to upright RGB. Needs only Pillow and NumPy, so that a deployed predictor can use it."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

from tutelage.core.errors import TutelageError, one_line

# Of Pillow's formats those that hold photographs and start no other program (EPS runs Ghostscript).
_WANTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "HEIF")
_ALWAYS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".jp2"}
)
_HEIF, _AVIF = frozenset({".heic", ".heics", ".heif", ".hif"}), frozenset({".avif"})
# Files of images that are never read: cameras' raw files, and what Pillow cannot decode or decodes by other programs.
_NEVER = frozenset(
    {".jxl", ".svg", ".psd", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef"}
    | {".tga", ".dds", ".exr", ".hdr", ".ico", ".jxr", ".dcm", ".j2k", ".jpx"}
)


def _has_heif() -> bool:
    """Make Pillow read HEIC files where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


_READ_BY_EXTRA = (_HEIF if _has_heif() else frozenset()) | (_AVIF if features.check("avif") else frozenset())
SUFFIXES = _ALWAYS | _READ_BY_EXTRA
UNREAD = (_HEIF | _AVIF | _NEVER) - SUFFIXES  # of files that hold images which cannot be decoded here
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
DECODED_PIXELS = 1024**3 // 12  # larger images are scaled down; Pillow's own limit: 256 MiB of RGB
_LIMIT = threading.Lock()  # held while Pillow's own limit is raised


def remedy(suffix: str) -> str:
    """How files of a suffix in `UNREAD` could be used after all."""
    if suffix in _HEIF:
        return "pip install pillow-heif reads them"
    return "a newer Pillow reads them" if suffix in _AVIF else "convert them to JPEG or PNG"


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


def decode(
    content: Path | bytes, image_id: str, max_pixels: int | None = None, side: int | None = None
) -> Image.Image:
    """Decode a file, or the content of one, to upright RGB.

    An image of more than 89 megapixels is scaled down by 2, 4 or 8 until it has no more; of a JPEG, no more is decoded.

    Args:
        content: a path, or the bytes of the file.
        image_id: named in errors.
        max_pixels: larger images are refused as decompression bombs; None: Pillow's ``MAX_IMAGE_PIXELS``.
        side: short side in pixels that is wanted. A JPEG is decoded at a half, a quarter or an eighth of its size where
            its short side stays as long, which is several times as fast. None: the whole image.

    Raises:
        UnreadableImage: it is missing, damaged, of another format, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, once an image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            stream = io.BytesIO(content) if isinstance(content, bytes) else content
            with _pixel_limit(max_pixels), Image.open(stream, formats=FORMATS) as image:
                if (factor := _factor(image)) > 1:
                    image.draft(image.mode, (image.width // factor, image.height // factor))
                elif side is not None:
                    image.draft(image.mode, (side, side))
                upright = upright_rgb(image)
                return upright.reduce(factor) if (factor := _factor(upright)) > 1 else upright
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            raise UnreadableImage(image_id, _reason(error, content, max_pixels)) from None


@contextlib.contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Set Pillow's limit for a moment; it has one for the whole process."""
    if max_pixels is None:
        yield
        return
    with _LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _factor(image: Image.Image) -> int:
    """By how much an image is scaled down: 1, 2, 4 or 8."""
    return next((f for f in (1, 2, 4) if image.width * image.height <= DECODED_PIXELS * f**2), 8)


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


def _reason(error: Exception, content: Path | bytes, max_pixels: int | None) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {max_pixels or Image.MAX_IMAGE_PIXELS} pixels, refused as a decompression bomb"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not an image"
    if isinstance(error, Image.UnidentifiedImageError):
        suffix = _suffix_of(content)
        if suffix in UNREAD:
            return f"a {suffix[1:].upper()} image, whatever its name says; {remedy(suffix)}"
        return "not an image, or of an unsupported format"
    return one_line(error)[:200]


def _suffix_of(content: Path | bytes) -> str:
    """The usual suffix of a HEIC or AVIF file by its first bytes; "" for another file. Phones name them .jpg too."""
    try:
        head = content[:12] if isinstance(content, bytes) else _head(content)
    except OSError:
        return ""
    if head[4:8] != b"ftyp":
        return ""
    return ".avif" if head[8:12] in (b"avif", b"avis") else ".heic"


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)
