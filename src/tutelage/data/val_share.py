"""How many images are taken for model selection where the recipe leaves it to the run (``data.val_fraction=auto``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tutelage.data.sources.base import ImageSet

TENTH = 0.1  # of the images, where these are enough
ENOUGH = 300  # of 300 images, the standard error of a top-1 of 90% is 1.7 points, of 60 images 3.9
MOST = 0.2  # of the images: what val takes is not trained on


@dataclass(frozen=True)
class ValShare:
    """A share of the images for val, and why."""

    fraction: float
    why: str


def val_share(count: int) -> ValShare:
    """Choose the share of so many images, the labelled ones where there are labels, for val."""
    tenth, fifth = round(TENTH * count), round(MOST * count)
    if tenth >= ENOUGH or not fifth:
        return ValShare(TENTH, f"{tenth:,} of {count:,} images")
    if fifth > ENOUGH:
        return ValShare(
            ENOUGH / count, f"{ENOUGH} of {count:,} images, since a tenth is too few to select by"
        )
    return ValShare(MOST, f"{fifth:,} of {count:,} images, since fewer than {ENOUGH} are few to select by")


def of_groups(groups: Iterable[Mapping[str, ImageSet]], left_out: np.ndarray) -> ValShare | None:
    """Choose the share of the images that val takes from; None where it has images of its own.

    Args:
        groups: the roles that take from the same images, each with these.
        left_out: indices of the training source's images that no role gets.
    """
    for group in groups:
        if "val" not in group or not {"train", "test"} & set(group):
            continue
        images = group["val"]
        rest = np.setdiff1d(np.arange(len(images)), left_out if "train" in group else [])
        return val_share(len(rest) if images.labels is None else int(np.sum(images.labels[rest] >= 0)))
    return None
