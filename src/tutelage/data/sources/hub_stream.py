"""Hugging Face data sets that are streamed: ``hf:NAME[:CONFIG]?streaming[&side=320][#split]``.

They are read once, see `streaming`: a shard is a file of the data set, or what `datasets` takes for one. What the hub
says about the data set is kept beside the parts, so that later starts do not ask it. A pass that is stopped goes on
with the revision that it began with.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json
from tutelage.data.sources.hub import (
    ask,
    chosen_split,
    classes_of,
    image_column,
    label_column,
    name_of,
    quiet,
    resolved,
)
from tutelage.data.sources.streamed import Streamed
from tutelage.data.sources.streaming import SIDE, Keep, folder_of, part_of, side_of, stream

STREAMING = "streaming"


@dataclass(frozen=True)
class Rows:
    """One shard of a split.

    Attributes:
        split: the name of the source up to the split; with `revision` it names the folder.
        revision: of the data set, "" for one on this disk.
        number: of the shard, from 0.
        count: number of shards.
        columns: of images, and of labels, None where there are none.
        dataset: the split as `datasets` streams it; None where the part of the shard is on this disk.
    """

    split: str
    revision: str
    number: int
    count: int
    columns: tuple[str, str | None]
    dataset: Any = None

    @property
    def name(self) -> str:
        """The number of the shard behind the name of the split."""
        return f"{self.split}/{self.number + 1}-of-{self.count}"

    @property
    def folder(self) -> str:
        """The split of a revision."""
        return f"{self.split}@{self.revision}"

    def read(self, keep: Keep) -> dict[str, Any]:
        """Read the rows in order."""
        image, label = self.columns
        labels: list[Any] = []
        with quiet("datasets", logging.CRITICAL):  # what it cannot read is told in one line
            for row in self.dataset.shard(num_shards=self.count, index=self.number):
                cell = row[image] or {}
                content = cell.get("bytes")
                if content is None and cell.get("path"):
                    content = _file(cell["path"])
                keep(content, "the row holds no image")
                value = row[label] if label else None
                labels.append(value if value is None or isinstance(value, str | int | float) else str(value))
        return {"labels": labels}


@dataclass(frozen=True)
class _Source:
    """A data set, and what is known of it.

    Attributes:
        name: as written, without the split.
        where: the data set, without options.
        side: short side in pixels of what is kept.
    """

    name: str
    where: str
    side: int

    @classmethod
    def of(cls, written: str) -> _Source:
        name = f"hf:{written}"
        where, _, options = written.partition("?")
        side = SIDE
        for option in options.split("&"):
            key, _, value = option.partition("=")
            if key == "side":
                side = side_of(name, value)
            elif option != STREAMING:
                raise TutelageError(
                    f"{name}: unknown option {option!r}; there are {STREAMING} and side=PIXELS, as in "
                    f"hf:{where}?{STREAMING}&side={SIDE}"
                )
        return cls(name, where, side)

    @property
    def file(self) -> Path:
        """Where the facts are kept."""
        return folder_of(f"hf:{resolved(self.where)}", self.side).with_suffix(".json")

    def facts(self) -> dict[str, Any]:
        """The revision, the splits and, of those that were opened, columns, classes and number of shards."""
        try:
            facts = json.loads(self.file.read_text(encoding="utf-8"))
            if facts["splits"] and isinstance(facts["opened"], dict):
                return dict(facts)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or damaged: the hub is asked
        revision, splits = self._ask()
        facts = {"revision": revision, "splits": splits, "opened": {}}
        write_json(self.file, facts)
        return facts

    def _ask(self) -> tuple[str, list[str]]:
        there = Path(self.where).expanduser().exists()
        if not there and self.where.startswith((".", "/", "~")) and "*" not in self.where:
            raise TutelageError(f"{self.name}: no such file or folder")
        if there or self.where.endswith(".parquet"):
            return "", [*ask(self.where, lambda d: d.load_dataset(*self._local(), streaming=True))]

        def look(datasets: Any) -> tuple[str, list[str]]:
            from huggingface_hub import HfApi

            name, config = name_of(self.where)
            revision = HfApi().dataset_info(name).sha or ""
            return revision, datasets.get_dataset_split_names(name, config, revision=revision)

        found: tuple[str, list[str]] = ask(self.where, look)
        return found

    def _local(self) -> tuple[Any, ...]:
        path = Path(self.where).expanduser()
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            raise TutelageError(f"{self.name}: it is on this disk already; write hf:{self.where}")
        # (format, config, folder, files)
        return ("parquet", None, None, str(path)) if path.suffix == ".parquet" else (str(path),)

    def opened(self, split: str, revision: str) -> Any:
        """The split as `datasets` streams it, with its columns."""
        if revision:
            name, config = name_of(self.where)
            call = {"path": name, "name": config, "revision": revision}
            dataset = ask(self.where, lambda d: d.load_dataset(**call, split=split, streaming=True))
        else:
            dataset = ask(self.where, lambda d: d.load_dataset(*self._local(), split=split, streaming=True))
        if dataset.features is None:  # of formats without a schema, the first rows are read
            dataset = ask(self.where, lambda d: dataset._resolve_features())
        return dataset


def splits(written: str) -> tuple[str, ...]:
    """The splits of a data set, by their own names."""
    return tuple(_Source.of(written).facts()["splits"])


def open_stream(written: str, part: str | None) -> Streamed:
    """Open one split; those shards of which there is no part on this disk are read.

    Raises:
        TutelageError: an unknown option or split, a hub that cannot be reached, a shard that cannot be read.
    """
    source = _Source.of(written)
    facts = source.facts()
    split = chosen_split(source.where, part, facts["splits"])
    name = f"{source.name}#{part}" if part else source.name
    if split not in facts["splits"]:
        raise TutelageError(f"{name}: no split {split!r}; it has {', '.join(facts['splits'])}")
    origin = f"hf:{resolved(source.where)}#{split}"
    shards = _shards(source, name, origin, split, facts)
    found = stream(name, shards, source.side)
    classes, labels = None, None
    opened = facts["opened"][split]
    if opened["label"] is not None:
        values = [value for one in found.facts for value in one["labels"]]
        classes, labels = classes_of(values, opened["classes"])
    count = sum(map(len, found.entries))
    ids = [f"{split}/{row}" for row in range(count)]
    return Streamed(name, origin, found, shards, ids, range(count), classes, labels, source.side)


def _shards(source: _Source, name: str, origin: str, split: str, facts: dict[str, Any]) -> list[Rows]:
    """The shards of a split; it is opened only where one of them is not on this disk."""
    import datasets

    opened, revision = facts["opened"].get(split), facts["revision"]

    def shards(dataset: Any = None) -> list[Rows]:
        columns = (opened["image"], opened["label"])
        count = opened["shards"]
        return [Rows(origin, revision, number, count, columns, dataset) for number in range(count)]

    if opened and all(part_of(shard, source.side).exists() for shard in shards()):
        return shards()
    dataset = source.opened(split, revision)
    image = image_column(name, dataset.features)
    label, classes = label_column(dataset.features)
    now = {"image": image, "label": label, "classes": classes, "shards": dataset.n_shards}
    if opened and opened != now:
        raise TutelageError(
            f"{name}: the data set has changed since its first shards were read; delete {source.file} and "
            f"{part_of(shards()[0], source.side).parent}"
        )
    opened = facts["opened"][split] = now
    write_json(source.file, facts)
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return shards(dataset.select_columns([image, label] if label else [image]))


def _file(path: str) -> bytes:
    """A file that a row names: on this disk, in an archive, or on the hub."""
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        content: bytes = file.read()
    return content
