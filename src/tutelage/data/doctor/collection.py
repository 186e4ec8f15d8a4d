"""All images of a run in one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from tutelage.data.joined import Joined, join
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import Splits, Subset


@dataclass(frozen=True)
class Collection:
    """The images of a run's parts, numbered from 0, one part after the other.

    Attributes:
        parts: the subsets with their roles; a role can have several.
        classes: names in label order; () where no image has a label.
    """

    parts: Sequence[tuple[str, Subset]]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, splits: Splits) -> Collection:
        """Take all images of a run."""
        parts = []
        for role, part in splits.parts.items():  # unlabelled images may be of two sources
            several = part.images.parts if isinstance(part.images, Joined) else [part]
            parts += [(role, one) for one in several]
        return cls(parts, splits.classes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for _, part in self.parts])

    @cached_property
    def roles(self) -> np.ndarray:
        """The role of each image, (N,) text."""
        return np.repeat([role for role, _ in self.parts], [len(part) for _, part in self.parts])

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64; -1 where an image has no label."""
        return np.concatenate([part.labels for _, part in self.parts])

    @property
    def sets(self) -> dict[str, ImageSet]:
        """What each role takes its images from; unlabelled ones from the source of their own, where there is one."""
        return {role: part.images for role, part in self.parts}

    def set_of(self, number: int) -> ImageSet:
        """The set that an image is from."""
        return self._position(number)[0].images

    def subset(self) -> Subset:
        """All images as one subset, in the order of their numbers."""
        return join(*(part for _, part in self.parts))

    def id(self, number: int) -> str:
        """The id of an image in its source."""
        part, position = self._position(number)
        return part.id(position)

    def image(self, number: int) -> Image.Image:
        """Decode one image to RGB; raises `UnreadableImage`."""
        part, position = self._position(number)
        return part.image(position)

    def class_of(self, number: int) -> str:
        """The class of an image; "" where it has no label."""
        label = int(self.labels[number])
        return self.classes[label] if label >= 0 else ""

    def _position(self, number: int) -> tuple[Subset, int]:
        place = int(np.searchsorted(self._ends, number, side="right"))
        part = self.parts[place][1]
        return part, number - int(self._ends[place]) + len(part)
