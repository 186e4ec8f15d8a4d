"""WebDataset shards: tar files of samples, read without unpacking, in any order. ``wds:shards/{000..099}.tar``."""

from __future__ import annotations

import glob
import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, UNREAD, UnreadableImage, decode
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.names import class_name, image_id, label_indices
from tutelage.data.sources.tree import counted, unread_note

RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
# Members that name a sample's class: one of these suffixes, or JSON with one of these keys. The first one counts.
CLASS_SUFFIXES = (".cls", ".cls.txt", ".class", ".label", ".label.txt", ".target")
CLASS_KEYS = ("label", "cls", "class", "target", "class_name", "label_name", "class_id", "category", "y")
MAX_SHARDS = 1_000_000  # of one pattern; {0..9999999999} is a mistake that would fill the memory
MAX_CLASS_BYTES = 1024  # of a member that names a class; a longer one does not
MAX_JSON_BYTES = 65_536  # of a member with a class in it


@dataclass(slots=True)
class _Member:
    """Where an image is: number of its shard, name, first byte and size; and its class, where it has one."""

    shard: int
    name: str
    start: int
    size: int
    label: str | None = None

    def find_class(self, classes: dict[str, str]) -> None:
        """Take the class of the name up to its last dot or up to its first, else the name of the folder."""
        keys = (_last_dot(self.name)[0], _key(self.name)[0])
        named = next((classes[key] for key in keys if key in classes), None)
        self.label = named or class_name(PurePosixPath(keys[1]).parent.name) or None


@dataclass
class _Found:
    """What the shards contain.

    Attributes:
        plain: images whose suffix begins at the first dot, where WebDataset splits a name.
        dotted: images whose names have further dots, as in ``photo.v2.0001.jpg``.
        unread: members that hold images which cannot be decoded here, by suffix.
        keys: of the JSON members that gave no class.
    """

    plain: list[_Member] = field(default_factory=list)
    dotted: list[_Member] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)


class Shards(ImageSet):
    """Images in tar files, found by their offsets; nothing is unpacked.

    The id of each is the name of its shard and of its member. Its class is the content of its ``.cls`` member or the
    label in its ``.json`` member, else the name of the folder that its key is in.
    """

    def __init__(self, name: str, pattern: str, paths: list[Path]) -> None:
        self._paths = paths
        found = _Found()
        for number, path in enumerate(paths):
            _scan(name, number, path, found)
        images = found.plain or found.dotted
        self.notes = tuple(unread_note(name, found.unread))
        if found.plain and found.dotted:
            self.notes += (
                f"{name}: {counted(len(found.dotted), 'member')} passed over, whose suffix after the first dot "
                f"is no image's: {found.dotted[0].name}",
            )
        self._shards = np.array([member.shard for member in images], np.int32)
        self._starts = np.array([member.start for member in images], np.int64)
        self._sizes = np.array([member.size for member in images], np.int64)
        classes, labels = label_indices([member.label for member in images])
        if labels is None:
            self.notes += (_no_class(name, found.keys),)
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
    ranks: dict[str, int] = {}  # of the member that a key's class comes from; the lowest counts
    images: list[_Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _files(tar, path):
                stem, last = _class_stem(member.name)
                rank, text = _class_in(tar, member, last, found.keys)
                if text:
                    if rank < ranks.get(stem, len(CLASS_SUFFIXES) + 1):
                        ranks[stem] = rank
                        classes[stem] = text
                elif last in SUFFIXES:
                    place = _Member(number, member.name, member.offset_data, member.size)
                    (found.plain if _key(member.name)[1] == last else found.dotted).append(place)
                    images.append(place)
                elif last in UNREAD:
                    found.unread[last] += 1
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise TutelageError(
            f"{name}: shard {path} is not a readable, uncompressed tar file ({reason})"
        ) from None
    for image in images:
        image.find_class(classes)


def _class_in(
    tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, keys: Counter[str]
) -> tuple[int, str]:
    """(rank, class) that a member names; (0, "") where it names none. Keys of JSON without a class are counted."""
    limit = MAX_JSON_BYTES if suffix == ".json" else MAX_CLASS_BYTES
    if suffix not in (*CLASS_SUFFIXES, ".json") or member.size > limit:
        return 0, ""
    stream = tar.extractfile(member)
    text = stream.read().decode("utf-8", "surrogateescape").strip() if stream else ""
    if suffix != ".json":
        return CLASS_SUFFIXES.index(suffix), class_name(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return 0, ""
    if not isinstance(values, dict):
        return len(CLASS_SUFFIXES), _label(values)
    named = next((name for key in CLASS_KEYS if (name := _label(values.get(key)))), "")
    if not named:
        keys.update(map(str, values))
    return len(CLASS_SUFFIXES), named


def _label(value: object) -> str:
    """A label of JSON as a class name; "" where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return class_name(str(value).strip())


def _no_class(name: str, keys: Counter[str]) -> str:
    there = f"; its .json members have {', '.join(sorted(keys)[:8])}" if keys else ""
    return (
        f"{name}: no labels found; looked for members {' '.join(CLASS_SUFFIXES)}, for .json with "
        f"{', '.join(CLASS_KEYS)}, and for folders{there}"
    )


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


def _class_stem(member: str) -> tuple[str, str]:
    """As `_last_dot`, but a suffix such as ``.cls.txt`` is one."""
    name = member.removeprefix("./")
    double = next((s for s in CLASS_SUFFIXES if s.count(".") > 1 and name.lower().endswith(s)), "")
    return (name[: -len(double)], double) if double else _last_dot(member)


def _last_dot(member: str) -> tuple[str, str]:
    """A member's name up to its last dot, and the suffix from there."""
    stem, dot, suffix = member.removeprefix("./").rpartition(".")
    return stem, (dot + suffix).lower()
