"""WebDataset shards: tar files of samples. ``wds:shards/{000..099}.tar``.

Local shards are read without unpacking, in any order. Shards of a URL, ``wds:https://host/{000..099}.tar``, are
streamed once (`remote`).
"""

from __future__ import annotations

import glob
import tarfile
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.names import image_id, label_indices
from tutelage.data.sources.remote import open_remote
from tutelage.data.sources.tarred import Found, expanded, opened, scan


class Shards(ImageSet):
    """Images in tar files, found by their offsets; nothing is unpacked.

    The id of each is the name of its shard and of its member. Its class is the content of its ``.cls`` member or the
    label in its ``.json`` member, else the name of the folder that its key is in.
    """

    def __init__(self, name: str, pattern: str, paths: list[Path]) -> None:
        self._paths = paths
        found = Found()
        for number, path in enumerate(paths):
            _scan(name, number, path, found)
        chosen = found.chosen()
        self.notes = found.notes(name, chosen)
        images = [found.images[number] for number in chosen]
        self._shards = np.array([member.shard for member in images], np.int32)
        self._starts = np.array([member.start for member in images], np.int64)
        self._sizes = np.array([member.size for member in images], np.int64)
        classes, labels = label_indices([member.label for member in images])
        ids = [image_id(f"{paths[member.shard].name}/{member.name}") for member in images]
        if not ids and found.unread:
            raise TutelageError(f"{self.notes[0]}; there are no other images")
        super().__init__(name, f"wds:{Path(pattern).absolute()}", ids, classes, labels)

    def image(self, index: int) -> Image.Image:
        """Read one member and decode it."""
        path = self._paths[self._shards[index]]
        try:
            content = self._read(index, int(self._sizes[index]))
        except OSError as error:
            raise UnreadableImage(self.ids[index], f"{path}: {error.strerror}") from None
        return decode(content, self.ids[index], self.max_pixels)

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first bytes of one member; None where its shard cannot be read."""
        size = int(self._sizes[index])
        try:
            return self._read(index, size if count < 0 else min(count, size))
        except OSError:
            return None

    def _read(self, index: int, count: int) -> bytes:
        with open(self._paths[self._shards[index]], "rb") as shard:
            shard.seek(self._starts[index])
            return shard.read(count)

    def place(self, index: int) -> str:
        """The file of the shard and the offset of the member."""
        return f"{self._resolved[self._shards[index]]}@{self._starts[index]}"

    @cached_property
    def _resolved(self) -> list[Path]:
        return [path.resolve() for path in self._paths]

    def stamp(self) -> str:
        """The times when the shards were last changed.

        Raises:
            TutelageError: a shard is not there any more.
        """
        try:
            return " ".join(str(path.stat().st_mtime_ns) for path in self._paths)
        except OSError as error:
            raise TutelageError(
                f"{self.name}: shard {error.filename} cannot be read any more ({error.strerror}); restore it"
            ) from None

    def sizes(self) -> np.ndarray:
        """Size of each member in bytes."""
        return self._sizes


def parts(where: str) -> tuple[str, ...]:
    """A pattern is one set; train, val and test need one pattern each."""
    return ()


def load(where: str, part: str | None) -> ImageSet:
    """Index the shards of a pattern with braces (``{000..099}``) or wildcards; stream those of a URL."""
    if part:
        raise TutelageError(f"wds:{where}#{part}: shards have no parts; name a pattern for each of them")
    if "://" in where:
        return open_remote(where)
    return Shards(f"wds:{where}", where, _paths(where))


def _paths(pattern: str) -> list[Path]:
    names = [str(Path(name).expanduser()) for name in expanded(pattern)]
    paths = [Path(p) for name in names for p in (sorted(glob.glob(name)) if "*" in name else [name])]
    if not paths:
        raise TutelageError(f"wds:{pattern}: no such shards")
    for path in paths:
        if not path.is_file():
            raise TutelageError(f"wds:{pattern}: shard {path} is not there")
    return paths


def _scan(name: str, number: int, path: Path, found: Found) -> None:
    """Record where the images of one shard are, and their classes."""
    try:
        with opened(name=path, mode="r:") as tar:
            scan(tar, number, found, path.stat().st_size)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise TutelageError(
            f"{name}: shard {path} is not a readable, uncompressed tar file ({reason})"
        ) from None
