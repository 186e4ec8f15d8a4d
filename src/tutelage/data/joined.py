"""Several subsets as one set of images, to train on labelled and unlabelled images together."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from tutelage.data.sources.base import ImageSet
from tutelage.data.subset import Subset


class Joined(ImageSet):
    """Subsets one after the other; an image without a label has the label -1."""

    def __init__(self, parts: list[Subset]) -> None:
        self.parts = parts
        self.small = all(subset.images.small for subset in parts)
        self.ends = np.cumsum([len(subset) for subset in parts])
        super().__init__(
            name=" + ".join(subset.images.name for subset in parts),
            origin=" + ".join(subset.images.origin for subset in parts),
            ids=[f"{place}/{name}" for place, subset in enumerate(parts) for name in subset.ids],
            classes=parts[0].classes,
            labels=np.concatenate([subset.labels for subset in parts]),
        )

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB; raises `UnreadableImage`."""
        subset, position = self._position(index)
        return subset.image(position)

    def place(self, index: int) -> str:
        """Where the image is stored, as its own set says."""
        subset, position = self._position(index)
        return subset.images.place(int(subset.indices[position]))

    def full_name(self, index: int) -> str:
        """The name that the image has in its own set."""
        subset, position = self._position(index)
        return subset.full_name(position)

    def stamp(self) -> str:
        """The stamps of all subsets."""
        return " ".join(subset.images.stamp() for subset in self.parts)

    def digest(self) -> str:
        """A hash of the digests of all subsets."""
        return hashlib.sha256("".join(subset.digest() for subset in self.parts).encode()).hexdigest()

    def _position(self, index: int) -> tuple[Subset, int]:
        subset = self.parts[number := int(np.searchsorted(self.ends, index, side="right"))]
        return subset, index - int(self.ends[number]) + len(subset)


def join(*parts: Subset) -> Subset:
    """All images of several subsets, in order, with the classes of the first one."""
    joined = Joined(list(parts))
    return Subset(
        joined, np.arange(len(joined)), parts[0].classes, split=" + ".join(one.split for one in parts)
    )
