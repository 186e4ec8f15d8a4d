"""Images of a set that are read from a copy on disk; all else is that of the original set."""

from __future__ import annotations

import numpy as np

from tutelage.data.sources.base import ImageSet


class StoredImages(ImageSet):
    """A set whose images come from a copy; ids, classes, labels and names are those of the original set."""

    decoded = True

    def __init__(self, source: ImageSet) -> None:
        self._source = source
        self._digest = None
        self.name, self.origin, self.ids = source.name, source.origin, source.ids
        self.classes, self.labels = source.classes, source.labels

    def place(self, index: int) -> str:
        """Where the original image is stored."""
        return self._source.place(index)

    def full_name(self, index: int) -> str:
        """The name that the image has in its original set."""
        return self._source.full_name(index)

    def stamp(self) -> str:
        """The stamp of the original set."""
        return self._source.stamp()


def sampled(count: int, sample: int) -> list[int]:
    """At most `sample` positions, evenly spaced among `count`: those of which a size is estimated."""
    return [int(place) for place in np.unique(np.linspace(0, count - 1, sample).astype(int))]
