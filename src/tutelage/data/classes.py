"""The classes of the data among the classes of a head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.data.sources.names import class_name


def map_classes(classes: Sequence[str], head_ids: Sequence[str] | None) -> np.ndarray | None:
    """The place of each class of the data in a head.

    Args:
        classes: the data's class names in label order.
        head_ids: the head's class ids in output order (WordNet ids for ImageNet heads, the names kept in
            a checkpoint otherwise).

    Returns:
        int64 (len(classes),): index into the head; None when a class is missing there or a name is
        not unique.
    """
    if head_ids is None:
        return None
    classes = [class_name(name) for name in classes]
    place = {class_name(name): index for index, name in enumerate(head_ids)}
    if len(place) != len(head_ids) or len(set(classes)) != len(classes):
        return None
    if any(name not in place for name in classes):
        return None
    return np.array([place[name] for name in classes], np.int64)
