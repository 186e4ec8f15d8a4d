"""Which classes the heads of teacher and student speak of, and how the data's labels map to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.classes import map_classes
from tutelage.models.source import Model


@dataclass(frozen=True)
class ClassMapping:
    """The agreement between both heads and the data.

    Attributes:
        class_ids: of both heads, in order.
        index: (data classes,) head index of each class of the data.
        new: models (by their NAME@WEIGHTS) that got a new head, to be fitted.
    """

    class_ids: tuple[str, ...]
    index: np.ndarray
    new: frozenset[str]

    def labels(self, of_data: np.ndarray) -> np.ndarray:
        """Head indices of the data's labels, any shape; -1 (unlabelled) stays."""
        return np.where(of_data >= 0, self.index[of_data], -1)


def align_heads(
    teachers: Sequence[Model], student: Model, classes: Sequence[str]
) -> tuple[list[Model], Model, ClassMapping]:
    """Give all models the same classes in the same order.

    Where the first teacher's head covers the data (WordNet ids of its classes), all of its classes stay;
    otherwise the data's classes are the head's. A model that speaks of other classes gets a new head.

    Raises:
        TutelageError: two fitted heads speak of different classes.
    """
    first = teachers[0]
    covered = _known(first, classes)
    target = covered if covered is not None else tuple(classes)
    new: set[str] = set()
    models = [_with_head(model, target, classes, new) for model in [*teachers, student]]
    index = map_classes(classes, target)
    assert index is not None  # the target covers the data by construction
    return models[:-1], models[-1], ClassMapping(class_ids=target, index=index, new=frozenset(new))


def _known(model: Model, classes: Sequence[str]) -> tuple[str, ...] | None:
    """The classes of a pretrained head that covers the data, else None."""
    if not model.pretrained:
        return None
    if model.class_ids is None:
        return tuple(classes) if model.num_classes == len(classes) else None
    return model.class_ids if map_classes(classes, model.class_ids) is not None else None


def _with_head(model: Model, target: tuple[str, ...], classes: Sequence[str], new: set[str]) -> Model:
    own = _known(model, classes)
    if own == target:
        return model
    if own is not None:
        raise TutelageError(
            f"{model.spec}: its head has {len(own)} classes, the teacher's {len(target)}, and both cover the data: "
            "teacher and student must speak of the same classes; give checkpoints with the same head"
        )
    new.add(model.spec)
    return model.with_head(target)
