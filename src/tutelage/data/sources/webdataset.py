"""WebDataset shards: tar files of samples, read without unpacking, in any order. ``wds:shards/{000..099}.tar``."""

from __future__ import annotations

import glob
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, UnreadableImage, decode
from tutelage.data.sources.base import ImageSet

RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
CLASS_SUFFIXES = (".cls", ".cls.txt")
MAX_SHARDS = 1_000_000  # of one pattern; {0..9999999999} is a mistake that would fill the memory
MAX_CLASS_BYTES = 1024  # of a member that names a class; a longer one does not


@dataclass
class _Found:
    """What the shards contain, with one entry in each list for an image."""

    names: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)


class Shards(ImageSet):
    """Images in tar files, found by their offsets; nothing is unpacked.

    The id of each is the name of its shard and of its member. Its class is the content of its ``.cls`` member, else
    the name of the folder that its key is in.
    """

    def __init__(self, name: str, pattern: str, paths: list[Path]) -> None:
        self._paths = paths
        found = _Found()
        for number, path in enumerate(paths):
            _scan(name, number, path, found)
        self._shards = np.array(found.shards, np.int32)
        self._starts = np.array(found.starts, np.int64)
        self._sizes = np.array(found.sizes, np.int64)
        classes, labels = _labels(found.classes)
        super().__init__(name, f"wds:{Path(pattern).absolute()}", found.names, classes, labels)

    def image(self, index: int) -> Image.Image:
        """Read one member and decode it."""
        path = self._paths[self._shards[index]]
        try:
            with open(path, "rb") as shard:
                shard.seek(self._starts[index])
                content = shard.read(self._sizes[index])
        except OSError as error:
            raise UnreadableImage(self.ids[index], f"{path}: {error.strerror}") from None
        return decode(content, self.ids[index])

    def place(self, index: int) -> str:
        """The file of the shard and the offset of the member."""
        return f"{self._paths[self._shards[index]].resolve()}@{self._starts[index]}"

    def stamp(self) -> str:
        """The times when the shards were last changed."""
        return " ".join(str(path.stat().st_mtime_ns) for path in self._paths)

    def sizes(self) -> np.ndarray:
        """Size of each member in bytes."""
        return self._sizes


def parts(where: str) -> tuple[str, ...]:
    """A pattern is one set; train, val and test need one pattern each."""
    return ()


def load(where: str, part: str | None) -> Shards:
    """Index the shards of a pattern with braces (``{000..099}``) or wildcards."""
    if part:
        raise TutelageError(f"wds:{where}#{part}: shards have no parts; name a pattern for each of them")
    return Shards(f"wds:{where}", where, _paths(where))


def _paths(pattern: str) -> list[Path]:
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise TutelageError(
            f"wds:{pattern}: needs the package braceexpand: pip install 'tutelage[wds]'"
        ) from None
    try:
        ranges = [abs(int(last) - int(first)) + 1 for first, last in RANGE.findall(pattern)]
        if math.prod(ranges) > MAX_SHARDS:
            raise TutelageError(f"wds:{pattern}: names more than {MAX_SHARDS} shards")
        expanded = [str(Path(name).expanduser()) for name in braceexpand(pattern)]
    except ValueError:
        raise TutelageError(f"wds:{pattern}: a brace is not closed") from None
    paths = [Path(p) for name in expanded for p in (sorted(glob.glob(name)) if "*" in name else [name])]
    if not paths:
        raise TutelageError(f"wds:{pattern}: no such shards")
    for path in paths:
        if not path.is_file():
            raise TutelageError(f"wds:{pattern}: shard {path} is not there")
    return paths


def _scan(name: str, number: int, path: Path, found: _Found) -> None:
    """Record where the images of one shard are, and their classes."""
    classes: dict[str, str] = {}
    keys: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _files(tar, path):
                key, suffix = _key(member.name)
                if suffix in CLASS_SUFFIXES and member.size <= MAX_CLASS_BYTES:
                    stream = tar.extractfile(member)
                    classes[key] = stream.read().decode("utf-8", "replace").strip() if stream else ""
                elif suffix in SUFFIXES:
                    found.names.append(f"{path.name}/{member.name}")
                    keys.append(key)
                    found.shards.append(number)
                    found.starts.append(member.offset_data)
                    found.sizes.append(member.size)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise TutelageError(
            f"{name}: shard {path} is not a readable, uncompressed tar file ({reason})"
        ) from None
    found.classes += [classes.get(key) or PurePosixPath(key).parent.name or None for key in keys]


def _files(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Regular files that are complete within the shard; links and devices are skipped."""
    end = path.stat().st_size
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        if member.isreg() and not member.issparse():
            if not 0 <= member.size <= end - member.offset_data:
                raise tarfile.ReadError(f"{member.name} is cut off")
            yield member


def _key(member: str) -> tuple[str, str]:
    """WebDataset's sample key and suffix: a name split at the first dot of its last component."""
    folder, slash, base = member.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _labels(classes: list[str | None]) -> tuple[list[str] | None, np.ndarray | None]:
    """(class names, int64 labels); numbers in order of their value, other names sorted."""
    known = {name for name in classes if name is not None}
    if not known:
        return None, None
    numbers = all(name.isdecimal() for name in known)
    names = sorted(known, key=int) if numbers else sorted(known)
    place = {name: index for index, name in enumerate(names)}
    return names, np.array([-1 if name is None else place[name] for name in classes], np.int64)
