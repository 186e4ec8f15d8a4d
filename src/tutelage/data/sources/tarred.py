"""Tar files of samples: their names, which members are images, and which ones name the classes."""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.data.decode import SUFFIXES, UNREAD
from tutelage.data.sources.names import class_name
from tutelage.data.sources.tree import counted, unread_note

# Members that name a sample's class: one of these suffixes, or JSON with one of these keys. The first one counts.
CLASS_SUFFIXES = (".cls", ".cls.txt", ".class", ".label", ".label.txt", ".target")
CLASS_KEYS = ("label", "cls", "class", "target", "class_name", "label_name", "class_id", "category", "y")
MAX_CLASS_BYTES = 1024  # of a member that names a class; a longer one does not
MAX_JSON_BYTES = 65_536  # of a member with a class in it
RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
MAX_SHARDS = 1_000_000  # of one pattern; {0..9999999999} is a mistake that would fill the memory
Keep = Callable[[tarfile.TarFile, tarfile.TarInfo], None]


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for.

    Raises:
        TutelageError: braceexpand is not installed, a brace is not closed, or there are too many.
    """
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
        return [*braceexpand(pattern)]
    except ValueError:
        raise TutelageError(f"wds:{pattern}: a brace is not closed") from None


@dataclass(slots=True)
class Member:
    """Where an image is: number of its shard, name, first byte and size; and its class, where it has one.

    Attributes:
        plain: its suffix begins at the first dot, where WebDataset splits a name; not so in ``photo.v2.0001.jpg``.
    """

    shard: int
    name: str
    start: int
    size: int
    plain: bool
    label: str | None = None

    def find_class(self, classes: dict[str, str]) -> None:
        """Take the class of the name up to its last dot or up to its first, else the name of the folder."""
        keys = (_last_dot(self.name)[0], _key(self.name)[0])
        named = next((classes[key] for key in keys if key in classes), None)
        self.label = named or class_name(PurePosixPath(keys[1]).parent.name) or None


@dataclass
class Found:
    """What shards contain.

    Attributes:
        images: of all shards, in their order.
        unread: members that hold images which cannot be decoded here, by suffix.
        keys: of the JSON members that gave no class.
    """

    images: list[Member] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)

    def chosen(self) -> list[int]:
        """The numbers of the images that are used: the plain ones, or all where there is none."""
        plain = [number for number, member in enumerate(self.images) if member.plain]
        return plain or [*range(len(self.images))]

    def notes(self, name: str, chosen: Sequence[int]) -> tuple[str, ...]:
        """Sentences about what is not used."""
        notes = unread_note(name, self.unread)
        if 0 < len(chosen) < len(self.images):
            first = next(member for member in self.images if not member.plain)
            notes.append(
                f"{name}: {counted(len(self.images) - len(chosen), 'member')} passed over, whose suffix after the "
                f"first dot is no image's: {first.name}"
            )
        if all(self.images[number].label is None for number in chosen):
            notes.append(_no_class(name, self.keys))
        return tuple(notes)


@contextmanager
def opened(**arguments: Any) -> Iterator[tarfile.TarFile]:
    """Open a tar file, whose end has to be one once it was read.

    tarfile takes any header that it cannot read for the end, so that the members behind it would be lost unsaid.

    Args:
        arguments: of `tarfile.open`.

    Raises:
        tarfile.ReadError: after the body of the `with`, where the tar file ends at a damaged header, or without an end.
    """

    class Header(tarfile.TarInfo):
        """Notes at what the tar file ends."""

        end = ""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                cls.end = "" if isinstance(error, tarfile.EOFHeaderError) else str(error)  # type: ignore[attr-defined]
                raise

    with tarfile.open(tarinfo=Header, **arguments) as tar:
        yield tar
    if Header.end:
        raise tarfile.ReadError(f"it has no end but a member with {Header.end}")


def scan(
    tar: tarfile.TarFile, number: int, found: Found, end: int | None = None, keep: Keep | None = None
) -> None:
    """Find the images of one shard, and their classes.

    Args:
        tar: is read from its beginning to its end, and only forwards.
        number: of the shard.
        found: takes what is found.
        end: size of the shard in bytes; None: not known, as in a stream.
        keep: called with each image when the tar file is at it.

    Raises:
        tarfile.TarError, OSError, ValueError, EOFError: the shard is broken or cut off.
    """
    classes: dict[str, str] = {}
    ranks: dict[str, int] = {}  # of the member that a key's class comes from; the lowest counts
    first = len(found.images)
    for member in _files(tar, end):
        stem, last = _class_stem(member.name)
        rank, text = _class_in(tar, member, last, found.keys)
        if text:
            if rank < ranks.get(stem, len(CLASS_SUFFIXES) + 1):
                ranks[stem] = rank
                classes[stem] = text
        elif last in SUFFIXES:
            plain = _key(member.name)[1] == last
            found.images.append(Member(number, member.name, member.offset_data, member.size, plain))
            if keep:
                keep(tar, member)
        elif last in UNREAD:
            found.unread[last] += 1
    for image in found.images[first:]:
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


def _files(tar: tarfile.TarFile, end: int | None) -> Iterator[tarfile.TarInfo]:
    """Regular files that are complete within the shard; links and devices are skipped."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        if member.isreg() and not member.issparse():
            if member.size < 0 or (end is not None and member.size > end - member.offset_data):
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
