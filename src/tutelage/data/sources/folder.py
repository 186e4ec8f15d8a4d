"""A folder with a folder for each class; or with train/, val/ and test/ of such; or with unlabelled images.

Images in a folder ``_unlabelled`` beside the class folders, or beside train/, are training images without a label.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.decode import SUFFIXES, decode
from tutelage.data.sources.base import ImageSet, Names, canonical_part

UNLABELLED = {"_unlabelled", "_unlabeled"}  # folders that are no classes


class Folder(ImageSet):
    """Images in files. The id of each is its path below the folder."""

    def __init__(self, name: str, root: Path, top: Path, unlabelled: Sequence[Path] = ()) -> None:
        """Find the images.

        Args:
            name: the source as written.
            root: the folder that the user named; ids are paths below it.
            top: the folder that holds the class folders: `root`, or one part of it.
            unlabelled: further folders, of images without a label.
        """
        self._root = root
        loose = sorted(_images(top, deep=False))
        own = [folder for folder in _folders(top) if folder.name not in UNLABELLED]
        trees = {folder.name: sorted(_images(folder)) for folder in own}
        trees = {cls: files for cls, files in sorted(trees.items()) if files}
        if loose and trees:
            raise TutelageError(
                f"{name}: {loose[0].name} lies beside the class folders; move it into one of them or, if its class is "
                "not known, into a folder _unlabelled beside them, or remove it"
            )
        files = loose or [file for files in trees.values() for file in files]
        apart = [file for folder in [*_unlabelled(top), *unlabelled] for file in sorted(_images(folder))]
        files += apart
        ids = Names(file.relative_to(root).as_posix() for file in files)
        counts = [len(files) for files in trees.values()] + [len(apart)]
        labels = np.repeat([*range(len(trees)), -1], counts) if trees else None
        super().__init__(name, str(top.resolve()), ids, list(trees) or None, labels)

    def image(self, index: int) -> Image.Image:
        """Decode one file."""
        image_id = self.ids[index]
        return decode(self._root / image_id, image_id)

    def place(self, index: int) -> str:
        """Device and inode of the file, which are the same by every path and link."""
        try:
            found = (self._root / self.ids[index]).stat()
        except OSError:
            return super().place(index)
        return f"{found.st_dev}:{found.st_ino}"

    def sizes(self) -> np.ndarray:
        """Size of each file in bytes; -1 where it does not exist any more."""
        return self._stats("st_size")

    def stamp(self) -> str:
        """A hash of the times when the files were last changed."""
        return hashlib.sha256(self._stats("st_mtime_ns").tobytes()).hexdigest()

    def _stats(self, field: str) -> np.ndarray:
        return np.fromiter((_stat(self._root / name, field) for name in self.ids), np.int64, len(self.ids))


def parts(where: str) -> tuple[str, ...]:
    """The names of the train, val and test folders, where the folder consists of these."""
    return tuple(_parts(_existing(where)))


def load(where: str, part: str | None) -> Folder:
    """Open a folder, or one part of it."""
    root = _existing(where)
    if part is None:
        return Folder(f"folder:{where}", root, root)
    top = _parts(root).get(canonical_part(part))
    if top is None:
        raise TutelageError(f"folder:{where}#{part}: there is no such folder below {where}")
    beside = _unlabelled(root) if canonical_part(part) == "train" else []
    return Folder(f"folder:{where}#{part}", root, top, beside)


def _existing(where: str) -> Path:
    root = Path(where).expanduser()
    if not root.exists():
        raise TutelageError(f"folder:{where}: no such folder")
    if not root.is_dir():
        raise TutelageError(f"folder:{where}: a file, not a folder; name the folder that holds the images")
    return root


def _parts(root: Path) -> dict[str, Path]:
    """Folders of the parts by their common names. A class that happens to be called 'train' is not a part."""
    folders = [folder for folder in _folders(root) if folder.name not in UNLABELLED]
    found = {canonical_part(f.name): f for f in folders if canonical_part(f.name) in {"train", "val", "test"}}
    paired = "train" in found and len(found) > 1
    return dict(sorted(found.items())) if found and (paired or len(found) == len(folders)) else {}


def _unlabelled(root: Path) -> list[Path]:
    return [folder for folder in _folders(root) if folder.name in UNLABELLED]


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise TutelageError(f"folder:{root}: cannot be read ({error.strerror})") from None


def _images(root: Path, deep: bool = True, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Image files below a folder. Links are followed, but not back to a folder above."""
    here = root.resolve()
    if here in seen:
        return
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise TutelageError(f"folder:{root}: cannot be read ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield Path(entry.path)
        elif deep and entry.is_dir():
            yield from _images(Path(entry.path), True, seen | {here})


def _stat(path: Path, field: str) -> int:
    try:
        return int(getattr(path.stat(), field))
    except OSError:
        return -1
