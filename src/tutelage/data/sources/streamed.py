"""The images of a source that lay elsewhere, read from the parts on this disk that `streaming` has written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.data.decode import UnreadableImage
from tutelage.data.parts import QUALITY, PartFiles
from tutelage.data.sources.jpegs import StoredJpegs
from tutelage.data.sources.streaming import Pass, Shard


class Streamed(StoredJpegs):
    """The images of a pass, read from its parts."""

    def __init__(
        self,
        name: str,
        origin: str,
        found: Pass,
        shards: Sequence[Shard],
        ids: Sequence[str],
        chosen: Sequence[int],
        classes: Sequence[str] | None,
        labels: np.ndarray | None,
        side: int,
    ) -> None:
        """Read from parts.

        Args:
            name: see `ImageSet`.
            origin: see `ImageSet`.
            found: the parts.
            shards: one for each.
            ids: one for each chosen image.
            chosen: the images that are used, by their numbers in all parts together.
            classes: see `ImageSet`.
            labels: see `ImageSet`.
            side: short side of the images in pixels, unless they were smaller.
        """
        counts = [len(entries) for entries in found.entries]
        every = np.concatenate(found.entries)
        self.side = side
        self._shards = [shard.name for shard in shards]
        self._parts = np.repeat(np.arange(len(counts)), counts)[chosen]
        self._entries = every[chosen]
        self._bad = {
            (number, int(image)): reason
            for number, facts in enumerate(found.facts)
            for image, reason in facts["bad"].items()
        }
        self._sizes = np.concatenate([np.array(facts["sizes"], np.int64) for facts in found.facts])[chosen]
        # the parts of shards from several places lie in several folders
        self._files = PartFiles(Path("/"), tuple(str(part) for part in found.parts))
        super().__init__(name, origin, ids, classes, labels)

    def jpeg(self, index: int) -> bytes:
        """See `StoredJpegs`."""
        image, start, length, crc = self._entries[index].item()
        part = int(self._parts[index])
        if not length:
            raise UnreadableImage(self.ids[index], self._bad[part, image])
        return self._files.read(part, start, length, crc, self.ids[index])

    def place(self, index: int) -> str:
        """The shard, and the number of the image in it."""
        return f"{self._shards[self._parts[index]]}@{self._entries['image'][index]}"

    def sizes(self) -> np.ndarray:
        """Size of each image in bytes, as it was in its shard."""
        return self._sizes

    def digest(self) -> str:
        """Another digest than that of the images in their shards, since these are smaller ones."""
        return hashlib.sha256(f"{super().digest()}@{self.side}q{QUALITY}".encode()).hexdigest()
