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
from tutelage.data.sources.names import Paths
from tutelage.data.sources.scan import STATS


class Files(ImageSet):
    """Images in files. The id of each is its path below a folder."""

    def __init__(
        self,
        name: str,
        root: Path,
        origin: str,
        paths: Sequence[str] | Paths,
        classes: Sequence[str] | None,
        labels: np.ndarray | None,
        stats: np.ndarray | None = None,
    ) -> None:
        """Take files of images.

        Args:
            name: the source as written.
            root: a folder; ids are paths below it.
            origin: of the images, the same for all sets of them.
            paths: of the files below `root`, with slashes.
            classes: names in label order; None when there are no labels.
            labels: int64, index into `classes`, -1 where an image has none; None when there are no labels.
            stats: `STATS` of each file, of a scan; None: the files are looked at when it is asked for.
        """
        self._root = root
        self._kept = stats
        self._sizes = None if stats is None else stats[:, STATS.index("st_size")]
        self._paths = paths if isinstance(paths, Paths) else Paths.of(paths)
        super().__init__(name, origin, self._paths.ids, classes, labels)

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
        if self._kept is not None:
            return ":".join(str(value) for value in self._kept[index, 2:].tolist())
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
        return self._root / self._paths[int(index)]

    def _stats(self, field: str) -> np.ndarray:
        if self._kept is not None:
            return np.ascontiguousarray(self._kept[:, STATS.index(field)])
        return np.fromiter(
            (_stat(self._path(i), field) for i in range(len(self.ids))), np.int64, len(self.ids)
        )


def _stat(path: Path, field: str) -> int:
    try:
        return int(getattr(path.stat(), field))
    except OSError:
        return -1
