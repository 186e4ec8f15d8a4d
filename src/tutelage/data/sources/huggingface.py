"""Hugging Face data sets: from the hub, a local folder, or parquet files. ``hf:NAME[:CONFIG][#split]``.

With ``?streaming`` behind the name they are streamed once (`hub_stream`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.sources import hub_stream
from tutelage.data.sources.base import ImageSet, canonical_part
from tutelage.data.sources.hub import (
    ask,
    chosen_split,
    classes_of,
    image_column,
    is_streamed,
    label_column,
    name_of,
    resolved,
)


class Rows(ImageSet):
    """The rows of one split, memory-mapped by `datasets`. The id of each is the split and the row number."""

    def __init__(self, name: str, where: str, split: str, dataset: Any) -> None:
        import datasets

        column = image_column(name, dataset.features)
        self._column = column
        self._rows = dataset.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        of_labels, names = label_column(dataset.features)
        classes, labels = None, None
        if of_labels is not None:
            classes, labels = classes_of(dataset.data.column(of_labels).to_pylist(), names)
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
    splits = hub_stream.splits(where) if is_streamed(where) else _splits(where)
    return tuple(dict.fromkeys(map(canonical_part, splits))) if len(splits) > 1 else ()


def load(where: str, part: str | None) -> ImageSet:
    """One split; `part` may also be a slice in `datasets`' own syntax, such as ``train[:5000]``."""
    if is_streamed(where):
        return hub_stream.open_stream(where, part)
    split = chosen_split(where, part, _splits(where))
    dataset = _opened(where, split)
    return Rows(f"hf:{where}#{part}" if part else f"hf:{where}", resolved(where), split, dataset)


@functools.lru_cache(maxsize=8)
def _splits(where: str) -> tuple[str, ...]:
    local = _local(where)
    if local is not None:
        return tuple(local)
    name, config = name_of(where)
    return tuple(ask(where, lambda d: d.get_dataset_split_names(name, config)))


def _opened(where: str, split: str) -> Any:
    local = _local(where)
    if local is None:
        name, config = name_of(where)
        return ask(where, lambda d: d.load_dataset(name, config, split=split))
    if split in local:
        return local[split]
    raise TutelageError(f"hf:{where}: no split {split!r}; it has {', '.join(local)}")


@functools.lru_cache(maxsize=8)
def _local(where: str) -> Any:
    """All splits of a folder or of parquet files; None for a name on the hub."""
    path = Path(where).expanduser()
    if path.suffix == ".parquet" and (path.exists() or "*" in where):
        return ask(where, lambda d: d.load_dataset("parquet", data_files=str(path)))
    if not path.exists():
        if path.suffix == ".parquet" or where.startswith((".", "/", "~")):
            raise TutelageError(f"hf:{where}: no such file or folder")
        return None
    if not path.is_dir():
        raise TutelageError(f"hf:{where}: name a .parquet file, a folder or a data set on the hub")
    if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
        return ask(where, lambda d: d.load_dataset(str(path)))
    saved = ask(where, lambda d: d.load_from_disk(str(path)))
    return saved if isinstance(saved, dict) else {"train": saved}
