"""What lies below a folder: images, and what is no image and passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.data.decode import SUFFIXES, UNREAD, remedy

# What systems and network disks leave behind; a name that begins with a dot is hidden and passed over too.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
FIRST = 3  # names given in a note


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        images: files of images, unsorted.
        unread: number of files of images that cannot be decoded here, by suffix.
        lost: links that lead nowhere.
        others: number of other files, by suffix.
        folders: those that were listed, each with its time in ns before that.
    """

    images: list[Path] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    lost: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    folders: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tree) -> None:
        """Take in what lies below another folder."""
        self.images += other.images
        self.unread += other.unread
        self.lost += other.lost
        self.others += other.others
        self.folders |= other.folders


def walk(root: Path, deep: bool = True, seen: frozenset[Path] = frozenset()) -> Tree:
    """Find all files below a folder. Links are followed, but not back to a folder above.

    Args:
        root: the folder.
        deep: also look into the folders below it.
        seen: real paths of the folders above it.

    Raises:
        TutelageError: a folder cannot be read.
    """
    found = Tree()
    here = root.resolve()
    if here in seen:
        return found
    found.folders[str(root)] = _time(root)
    for entry in _entries(root):
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():  # also of the name logo.gif
            if deep:
                found.add(walk(Path(entry.path), True, seen | {here}))
        elif entry.is_file():
            if suffix in SUFFIXES:
                found.images.append(Path(entry.path))
            else:
                (found.unread if suffix in UNREAD else found.others)[suffix] += 1
        elif entry.is_symlink() and suffix in SUFFIXES:
            found.lost.append(Path(entry.path))
    return found


def folders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those of the system.

    Raises:
        TutelageError: it cannot be read.
    """
    return sorted(Path(entry.path) for entry in _entries(root) if entry.is_dir())


def holds_images(root: Path, seen: frozenset[Path] = frozenset()) -> bool:
    """Whether there is a file of an image, readable or not, below a folder."""
    here = root.resolve()
    if here in seen:
        return False
    entries = list(_entries(root))
    if any(os.path.splitext(e.name)[1].lower() in SUFFIXES | UNREAD and e.is_file() for e in entries):
        return True
    return any(e.is_dir() and holds_images(Path(e.path), seen | {here}) for e in entries)


def unread_note(name: str, unread: Counter[str]) -> list[str]:
    """Count files of images that cannot be decoded, with what would help."""
    if not unread:
        return []
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in unread.most_common())
    remedies = dict.fromkeys(f"{suffix}: {remedy(suffix)}" for suffix, _ in unread.most_common())
    return [f"{name}: {kinds} passed over, since they cannot be decoded here ({'; '.join(remedies)})"]


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are beyond them."""
    rest = len(names) - FIRST
    return ", ".join(names[:FIRST]) + (f" and {rest:,} more" if rest > 0 else "")


def _time(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError as error:
        raise TutelageError(f"folder:{folder}: cannot be read ({error.strerror})") from None


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            yield from [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise TutelageError(f"folder:{root}: cannot be read ({error.strerror})") from None
