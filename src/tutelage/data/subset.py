"""Some images of a set, with the classes of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from tutelage.data.sources.base import ImageSet


@dataclass(frozen=True)
class Subset:
    """Some images of a set.

    Attributes:
        images: the set.
        indices: int64, ascending, which of its images.
        classes: class names in the order of `labels`, the same for every subset of a run.
        relabel: int64, index into `classes` for each of the set's own labels; None where they are the same.
        split: how the subset was made, in words.
        labels_hidden: labels are not used, and `labels` are all -1.
    """

    images: ImageSet
    indices: np.ndarray
    classes: tuple[str, ...] = ()
    relabel: np.ndarray | None = None
    split: str = "all"
    labels_hidden: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (n,), index into `classes`; -1 where an image has no label."""
        if self.images.labels is None or not self.classes or self.labels_hidden:
            return np.full(len(self), -1, np.int64)
        labels = self.images.labels[self.indices]
        return labels if self.relabel is None else np.append(self.relabel, -1)[labels]

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return bool((self.labels >= 0).any())

    @property
    def ids(self) -> list[str]:
        """The id of each image, as a new list."""
        return [self.id(position) for position in range(len(self))]

    def id(self, position: int) -> str:
        """The id of one image."""
        return self.images.ids[int(self.indices[position])]

    def full_name(self, position: int) -> str:
        """A name that no other image of a run has, see `ImageSet.full_name`."""
        return self.images.full_name(int(self.indices[position]))

    def image(self, position: int) -> Image.Image:
        """Decode one image to RGB; raises `UnreadableImage`."""
        return self.images.image(int(self.indices[position]))

    def pixels(self, position: int) -> np.ndarray:
        """As `image`, uint8 (H, W, 3), not to be written to."""
        return self.images.pixels(int(self.indices[position]))

    def digest(self) -> str:
        """A hash of the set, of which of its images are in the subset, and of their labels."""
        digest = hashlib.sha256(self.images.digest().encode())
        digest.update(np.ascontiguousarray(self.indices, np.int64).tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What is recorded in the run directory."""
        return {
            "source": self.images.name,
            "split": self.split,
            "size": len(self),
            "labelled": int((self.labels >= 0).sum()),
            "digest": self.digest(),
        }


def whole(images: ImageSet) -> Subset:
    """All images of a set as one subset."""
    return Subset(images, np.arange(len(images)), images.classes or ())


def sample(part: Subset, images: int) -> Subset:
    """At most this many images, evenly spaced in the subset, so that all classes occur where it is sorted by class."""
    places = np.linspace(0, len(part) - 1, min(images, len(part))).round().astype(int)
    return replace(part, indices=part.indices[places])
