"""What both ways of reading Hugging Face data sets share: asking the hub, splits, columns and classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.sources.base import canonical_part

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")


def chosen_split(where: str, part: str | None, splits: Sequence[str]) -> str:
    """The split of a part, the first one where none is named.

    Raises:
        TutelageError: two splits share the common name.
    """
    split = part or splits[0]
    if split not in splits:
        return _only(where, split, [own for own in splits if canonical_part(own) == canonical_part(split)])
    if canonical_part(split) == split:  # may be the common name of another split too
        _only(where, split, [own for own in splits if canonical_part(own) == split])
    return split


def _only(where: str, part: str, own: list[str]) -> str:
    """The split of a part; the part itself where it is none of the splits, such as ``train[:5000]``.

    Raises:
        TutelageError: there are two.
    """
    if len(own) > 1:
        raise TutelageError(
            f"hf:{where}#{part}: the splits {' and '.join(own)} are both its part {canonical_part(part)}; name the one "
            f"to use by a slice, such as hf:{where}#{own[0]}[:100%]"
        )
    return own[0] if own else part


def resolved(where: str) -> str:
    """The path of what is on this disk; the name of what is on the hub."""
    path = Path(where).expanduser()
    return str(path.resolve()) if path.exists() else where


def is_streamed(where: str) -> bool:
    """Whether options stand behind a name, as in ``NAME?streaming``."""
    return "?" in where and not Path(where).expanduser().exists()


def name_of(where: str) -> tuple[str, str | None]:
    """(name, config) on the hub."""
    name, _, config = where.partition(":")
    return name, config or None


@contextmanager
def quiet(library: str, level: int) -> Iterator[None]:
    """Let a library log nothing below a level."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def ask(where: str, call: Any) -> Any:
    """Call a function of `datasets`, and turn what it raises into one line."""
    try:
        import datasets
    except ImportError:
        raise TutelageError(f"hf:{where}: needs the package datasets: pip install 'tutelage[hf]'") from None
    try:
        with quiet("huggingface_hub", logging.ERROR):  # it reports each of its retries
            return call(datasets)
    except datasets.exceptions.DatasetNotFoundError:
        raise TutelageError(
            f"hf:{where}: no such data set on the hub and no such folder here (a private one needs "
            "`hf auth login`)"
        ) from None
    except Exception as error:  # a download, a parser or a script of any library may fail in any way
        reason = one_line(error)[:200]
        if isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in {
            "httpx",
            "requests",
        }:
            remedy = "go online, or name a local folder or parquet file"
            raise TutelageError(f"hf:{where}: the hub cannot be reached ({reason}); {remedy}") from None
        raise TutelageError(f"hf:{where}: cannot be opened ({reason})") from None


def image_column(name: str, features: Any) -> str:
    """The column of the images.

    Raises:
        TutelageError: there is none.
    """
    import datasets

    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [column for column in IMAGE_COLUMNS if column in features]
    if not typed + named:
        raise TutelageError(f"{name}: no column holds images; it has {', '.join(features)}")
    return str((typed + named)[0])


def label_column(features: Any) -> tuple[str | None, list[str] | None]:
    """The column of the labels, None where there is none; and the names of a ClassLabel, None for other columns."""
    import datasets

    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    column = next(iter(typed + [column for column in LABEL_COLUMNS if column in features]), None)
    return column, features[column].names if typed else None


def classes_of(values: Sequence[Any], names: list[str] | None) -> tuple[list[str], np.ndarray]:
    """(class names, int64 labels); a ClassLabel keeps its own order, other values are sorted."""
    if names is not None:
        return names, np.array([-1 if v is None else v for v in values], np.int64)
    known = sorted({value for value in values if value not in (None, "")})
    place = {value: index for index, value in enumerate(known)}
    return [str(value) for value in known], np.array([place.get(value, -1) for value in values], np.int64)
