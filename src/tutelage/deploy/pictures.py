"""What a predictor takes: files, folders, arrays and PIL images. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, decode, upright_rgb
from tutelage.data.sources.tree import walk

Picture: TypeAlias = str | Path | np.ndarray | Image.Image

GIVE = "give a path, a PIL image, or an array of uint8 pixels, (height, width, 3) or (height, width)"
_LOADING = Lock()  # PIL decodes an opened file at its first use, which two threads must not do at once


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The given files, and the image files in the given folders, sorted.

    As in training, hidden files and folders (such as macOS leaves: ``._cat.jpg``), those of the system, folders that
    are named like images, and links back to a folder above are passed over.

    Raises:
        TutelageError: a path does not exist, or a folder has no images or cannot be read.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise TutelageError(f"{path}: no such image or folder")
            yield path
            continue
        found = sorted(walk(path).images)
        if not found:
            raise TutelageError(f"{path}: no images found; looked for {' '.join(sorted(SUFFIXES))}")
        yield from found


def each_picture(pictures: Any) -> Iterator[Picture | TutelageError]:
    """Each picture, with the error in the place of one that is none, so that the others are not lost."""
    if isinstance(pictures, TutelageError):
        yield pictures
    elif isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        yield from pictures
    elif isinstance(pictures, np.ndarray | Image.Image):
        yield pictures
    elif isinstance(pictures, str | os.PathLike):
        try:
            yield from find_images([_path(pictures)])
        except TutelageError as error:
            yield error
    elif reason := _no_picture(pictures):
        yield TutelageError(f"{reason}; {GIVE}")
    else:
        for picture in pictures:
            yield from each_picture(picture)


def _path(given: str | os.PathLike[Any]) -> Path:
    text = os.fspath(given)
    if not text:
        raise TutelageError(f"{given!r}: an empty path; {GIVE}")
    return Path(os.fsdecode(text))


def _no_picture(given: Any) -> str:
    """What is wrong with a value that is neither a picture nor pictures; empty where it may be several."""
    kind = type(given).__name__
    if isinstance(given, bytes | bytearray | memoryview):
        return f"{kind} of {len(given):,}: not a picture; open a file's content with PIL.Image.open(io.BytesIO(...))"
    if callable(getattr(given, "read", None)):
        return f"{kind}: not a picture; open the file with PIL.Image.open(...)"
    if type(given).__module__.partition(".")[0] == "torch":
        return f"{kind}: not a picture; convert a tensor with .permute(1, 2, 0).numpy(), 0 to 255 as uint8"
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        return f"{kind}: not a picture"
    return ""


def load(picture: Picture) -> Image.Image:
    """Decode a picture to upright RGB.

    Raises:
        TutelageError: it cannot be read.
    """
    if isinstance(picture, np.ndarray):
        return upright_rgb(_from_array(picture))
    if isinstance(picture, Image.Image):
        return _from_picture(picture)
    return decode(Path(picture), str(picture))


def _from_picture(picture: Image.Image) -> Image.Image:
    try:
        with _LOADING:
            copied = picture.copy()  # since it is rotated in place
        return upright_rgb(copied)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise TutelageError(
            f"{name_of(picture)}: cannot be decoded ({one_line(error)[:200]}); replace it"
        ) from None


def _from_array(array: np.ndarray) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise TutelageError(
            f"array of {array.dtype} {array.shape}: give uint8 pixels, (height, width, 3) or (height, width)"
        )
    return Image.fromarray(array)


def name_of(picture: Picture) -> str:
    """Return its path, or what it is."""
    if isinstance(picture, np.ndarray):
        return "array"
    return getattr(picture, "filename", "") or "image" if isinstance(picture, Image.Image) else str(picture)
