"""Several parts as one set of images: labelled and unlabelled ones trained on together."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from tutelage.data.sources import ImageSet
from tutelage.data.splits import Part


class Joined(ImageSet):
    """Parts one after the other; an image without a label has -1."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        super().__init__(
            name=" + ".join(part.images.name for part in parts),
            origin=" + ".join(part.images.origin for part in parts),
            ids=[f"{place}/{name}" for place, part in enumerate(parts) for name in part.ids],
            classes=parts[0].classes,
            labels=np.concatenate([part.labels for part in parts]),
        )

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB; raises `UnreadableImage`."""
        part, position = self._position(index)
        return part.image(position)

    def place(self, index: int) -> str:
        """Where the image of one of the parts lies."""
        part, position = self._position(index)
        return part.images.place(int(part.indices[position]))

    def stamp(self) -> str:
        """The stamps of all parts."""
        return " ".join(part.images.stamp() for part in self.parts)

    def digest(self) -> str:
        """Identity of all parts."""
        return hashlib.sha256("".join(part.digest() for part in self.parts).encode()).hexdigest()

    def _position(self, index: int) -> tuple[Part, int]:
        part = self.parts[number := int(np.searchsorted(self.ends, index, side="right"))]
        return part, index - int(self.ends[number]) + len(part)


def join(*parts: Part) -> Part:
    """All images of several parts, in order, with the first one's classes."""
    joined = Joined(list(parts))
    return Part(joined, np.arange(len(joined)), parts[0].classes, split="all")
