"""Images in files below one folder; how folders and lists of paths keep and read them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.data.decode import decode
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.names import Names, image_id


class Files(ImageSet):
    """Images in files. The id of each is its path below a folder."""

    def __init__(
        self,
        name: str,
        root: Path,
        origin: str,
        paths: Sequence[str],
        classes: Sequence[str] | None,
        labels: np.ndarray | None,
    ) -> None:
        """Take files of images.

        Args:
            name: the source as written.
            root: a folder; ids are paths below it.
            origin: of the images, the same for all sets of them.
            paths: of the files below `root`, with slashes.
            classes: names in label order; None when there are no labels.
            labels: int64, index into `classes`, -1 where an image has none; None when there are no labels.
        """
        self._root = root
        self._sizes: np.ndarray | None = None
        ids = [image_id(path) for path in paths]
        # the paths whose bytes are no UTF-8; of all others the id is the path
        self._paths = {
            index: path for index, (path, id_) in enumerate(zip(paths, ids, strict=True)) if path != id_
        }
        super().__init__(name, origin, Names(ids), classes, labels)

    def image(self, index: int) -> Image.Image:
        """Decode one file."""
        return decode(self._path(index), self.ids[index], self.max_pixels)

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first bytes of one file; None where it cannot be read."""
        try:
            with open(self._path(index), "rb") as file:
                return file.read(count)
        except OSError:
            return None

    def place(self, index: int) -> str:
        """Device and inode of the file, which are the same by every path and link."""
        try:
            found = self._path(index).stat()
        except OSError:
            return super().place(index)
        return f"{found.st_dev}:{found.st_ino}"

    def full_name(self, index: int) -> str:
        """The path of the file, from the root of the file system."""
        return f"{os.path.abspath(self._root)}/{self.ids[index]}"

    def sizes(self) -> np.ndarray:
        """Size of each file in bytes when they were first asked for; -1 where it did not exist any more."""
        if self._sizes is None:  # of a million files on a network disk, this takes minutes
            self._sizes = self._stats("st_size")
        return self._sizes

    def stamp(self) -> str:
        """A hash of the times when the files were last changed."""
        return hashlib.sha256(self._stats("st_mtime_ns").tobytes()).hexdigest()

    def _path(self, index: int) -> Path:
        index = int(index)
        return self._root / self._paths.get(index, self.ids[index])

    def _stats(self, field: str) -> np.ndarray:
        return np.fromiter(
            (_stat(self._path(i), field) for i in range(len(self.ids))), np.int64, len(self.ids)
        )


def _stat(path: Path, field: str) -> int:
    try:
        return int(getattr(path.stat(), field))
    except OSError:
        return -1
