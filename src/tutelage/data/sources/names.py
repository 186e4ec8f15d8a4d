"""Names of images and classes: stored in little memory, valid text in one Unicode form, no paths."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from tutelage.core.errors import TutelageError

UNDECODED = re.compile("[\udc80-\udcff]")  # bytes of a file name that are no UTF-8, as Python keeps them


class Names(Sequence[str]):
    """Many strings in one block of bytes. It takes little memory, and a forked worker copies none of it."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._text = b"".join(encoded)

    @classmethod
    def of_block(cls, text: bytes, ends: np.ndarray) -> Names:
        """Names from what `block` has returned."""
        names = cls(())
        names._text, names._ends = text, ends
        return names

    def block(self) -> tuple[bytes, np.ndarray]:
        """All names as UTF-8 one after the other, and int64 (names + 1), where each of them begins and ends."""
        return self._text, self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._text[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")

    def update(self, digest: hashlib._Hash) -> None:
        """Feed all names to a hash."""
        digest.update(self._ends.tobytes())
        digest.update(self._text)


@dataclass(frozen=True)
class Paths:
    """Many paths below a folder, in little memory.

    Attributes:
        ids: the `image_id` of each.
        odd: by index, the paths whose bytes are no UTF-8; of all others the id is the path.
    """

    ids: Names
    odd: dict[int, str]

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """Take paths with slashes."""
        odd: dict[int, str] = {}

        def named() -> Iterator[str]:
            for index, path in enumerate(paths):
                if (name := image_id(path)) != path:
                    odd[index] = path
                yield name

        return cls(Names(named()), odd)

    def __getitem__(self, index: int) -> str:
        return self.odd.get(index) or self.ids[index]


def class_name(name: str) -> str:
    """The name of a class as text that can be written anywhere.

    Bytes that are no UTF-8 are read as Latin-1, which old zip files use. The name is composed (Unicode's form NFC), so
    that a folder copied from macOS, which decomposes names, has the same classes.
    """
    text = UNDECODED.sub(lambda found: chr(ord(found[0]) - 0xDC00), name)
    return unicodedata.normalize("NFC", text)


def image_id(path: str) -> str:
    """The id of an image stored under a path: bytes that are no UTF-8 are written ``%E9``, so that ids differ."""
    return UNDECODED.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", path)


def checked_class(source: str, name: str) -> str:
    """Return a class name as `class_name` writes it, or refuse it where it could be used as a path out of a folder.

    Raises:
        TutelageError: it is empty, is a path, or has control characters.
    """
    steps = re.split(r"[/\\]", name)
    if not name.strip() or {".", ".."} & set(steps) or name.startswith(("/", "\\")) or not _printable(name):
        raise TutelageError(f"{source}: class name {name!r} is refused: it is empty, a path or unprintable")
    return class_name(name)


def unique_classes(
    source: str, names: Sequence[str], labels: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Checked class names, with labels into them. Names that differ in their Unicode form only are one class.

    Args:
        source: named in errors.
        names: in label order.
        labels: integers, index into `names`; -1: not labelled.

    Raises:
        TutelageError: a name is refused by `checked_class`.
    """
    checked = [checked_class(source, name) for name in names]
    classes = tuple(dict.fromkeys(checked))
    if len(classes) == len(checked):
        return classes, labels.astype(np.int64)
    place = {name: index for index, name in enumerate(classes)}
    return classes, np.array([*(place[name] for name in checked), -1], np.int64)[labels]


def label_indices(classes: Sequence[str | None]) -> tuple[list[str] | None, np.ndarray | None]:
    """The classes in label order, and the label of each image: int64, -1 where it has none; None without any class.

    Numbers are in order of their value, other names are sorted.

    Args:
        classes: of each image; None: it has none.
    """
    known = {name for name in classes if name is not None}
    if not known:
        return None, None
    numbers = all(name.isdecimal() for name in known)
    names = sorted(known, key=lambda name: (int(name), name)) if numbers else sorted(known)
    place = {name: index for index, name in enumerate(names)}
    return names, np.array([-1 if name is None else place[name] for name in classes], np.int64)


def _printable(name: str) -> bool:
    return all(ord(character) >= 32 and ord(character) != 127 for character in name)
