"""Hugging Face data sets: from the hub, a local folder, or parquet files. ``hf:NAME[:CONFIG][#split]``."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.sources.base import ImageSet, canonical_part

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")


class Rows(ImageSet):
    """The rows of one split, memory-mapped by `datasets`. The id of each is the split and the row number."""

    def __init__(self, name: str, where: str, split: str, dataset: Any) -> None:
        import datasets

        column = _image_column(name, dataset)
        self._column = column
        self._rows = dataset.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        classes, labels = _labels(dataset)
        ids = [f"{split}/{row}" for row in range(len(dataset))]
        super().__init__(name, f"hf:{where}#{split}", ids, classes, labels)

    def image(self, index: int) -> Image.Image:
        """Decode one row."""
        cell = self._rows[int(index)][self._column] or {}
        content = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
        if content is None:
            raise UnreadableImage(self.ids[index], "the row holds no image")
        return decode(content, self.ids[index], self.max_pixels)

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first bytes of one encoded image, where the table holds it."""
        content = (self._rows[int(index)][self._column] or {}).get("bytes")
        return None if content is None else bytes(content[: None if count < 0 else count])

    def sizes(self) -> np.ndarray | None:
        """Size of each encoded image in bytes, read from the offsets of the table."""
        import pyarrow.compute as pc

        content = pc.struct_field(self._rows.data.column(self._column), "bytes")
        return np.asarray(pc.fill_null(pc.binary_length(content), -1), np.int64)


def parts(where: str) -> tuple[str, ...]:
    """The splits by their common names (``val`` for ``validation``); none where there is only one split."""
    splits = _splits(where)
    return tuple(dict.fromkeys(map(canonical_part, splits))) if len(splits) > 1 else ()


def load(where: str, part: str | None) -> Rows:
    """One split; `part` may also be a slice in `datasets`' own syntax, such as ``train[:5000]``."""
    splits = _splits(where)
    split = part or splits[0]
    if split not in splits:
        split = _only(where, split, [own for own in splits if canonical_part(own) == canonical_part(split)])
    elif canonical_part(split) == split:  # may be the common name of another split too
        _only(where, split, [own for own in splits if canonical_part(own) == split])
    dataset = _opened(where, split)
    return Rows(f"hf:{where}#{part}" if part else f"hf:{where}", _resolved(where), split, dataset)


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


@functools.lru_cache(maxsize=8)
def _splits(where: str) -> tuple[str, ...]:
    local = _local(where)
    if local is not None:
        return tuple(local)
    name, config = _name(where)
    return tuple(_ask(where, lambda d: d.get_dataset_split_names(name, config)))


def _opened(where: str, split: str) -> Any:
    local = _local(where)
    if local is None:
        name, config = _name(where)
        return _ask(where, lambda d: d.load_dataset(name, config, split=split))
    if split in local:
        return local[split]
    raise TutelageError(f"hf:{where}: no split {split!r}; it has {', '.join(local)}")


@functools.lru_cache(maxsize=8)
def _local(where: str) -> Any:
    """All splits of a folder or of parquet files; None for a name on the hub."""
    path = Path(where).expanduser()
    if path.suffix == ".parquet" and (path.exists() or "*" in where):
        return _ask(where, lambda d: d.load_dataset("parquet", data_files=str(path)))
    if not path.exists():
        if path.suffix == ".parquet" or where.startswith((".", "/", "~")):
            raise TutelageError(f"hf:{where}: no such file or folder")
        return None
    if not path.is_dir():
        raise TutelageError(f"hf:{where}: name a .parquet file, a folder or a data set on the hub")
    if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
        return _ask(where, lambda d: d.load_dataset(str(path)))
    saved = _ask(where, lambda d: d.load_from_disk(str(path)))
    return saved if isinstance(saved, dict) else {"train": saved}


def _resolved(where: str) -> str:
    path = Path(where).expanduser()
    return str(path.resolve()) if path.exists() else where


def _name(where: str) -> tuple[str, str | None]:
    name, _, config = where.partition(":")
    return name, config or None


def _ask(where: str, call: Any) -> Any:
    """Call a function of `datasets`, and turn what it raises into one line."""
    try:
        import datasets
    except ImportError:
        raise TutelageError(f"hf:{where}: needs the package datasets: pip install 'tutelage[hf]'") from None
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # it reports each of its retries
    try:
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
    finally:
        hub_log.setLevel(level)


def _image_column(name: str, dataset: Any) -> str:
    import datasets

    features = dataset.features
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [column for column in IMAGE_COLUMNS if column in features]
    if not typed + named:
        raise TutelageError(f"{name}: no column holds images; it has {', '.join(features)}")
    return str((typed + named)[0])


def _labels(dataset: Any) -> tuple[list[str] | None, np.ndarray | None]:
    """(class names, int64 labels); a ClassLabel keeps its own order, other values are sorted."""
    import datasets

    features = dataset.features
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    column = next(iter(typed + [column for column in LABEL_COLUMNS if column in features]), None)
    if column is None:
        return None, None
    values = dataset.data.column(column).to_pylist()
    if typed:
        return features[column].names, np.array([-1 if v is None else v for v in values], np.int64)
    known = sorted({value for value in values if value not in (None, "")})
    place = {value: index for index, value in enumerate(known)}
    return [str(value) for value in known], np.array([place.get(value, -1) for value in values], np.int64)
