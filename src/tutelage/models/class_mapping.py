"""Which classes the heads of teacher and student have, and how the labels of the data map to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.classes import map_classes
from tutelage.data.subset import Subset
from tutelage.models.source import Model


@dataclass(frozen=True)
class ClassMapping:
    """The classes of both heads, and the place of the data's classes among them.

    Attributes:
        class_ids: of both heads, in order.
        index: (data classes,) head index of each class of the data.
        new: models (by what the user wrote) that got a new head, which is to be fitted.
        cut: models whose head has the data's classes alone, and had more, so that it was not made for this data.
    """

    class_ids: tuple[str, ...]
    index: np.ndarray
    new: frozenset[str]
    cut: frozenset[str] = frozenset()

    @property
    def due(self) -> frozenset[str]:
        """Models whose head was not made for this data: a teacher among these is fitted, unless the recipe says no."""
        return self.new | self.cut

    def labels(self, of_data: np.ndarray) -> np.ndarray:
        """Head indices of the data's labels, any shape; -1 (unlabelled) stays."""
        return np.where(of_data >= 0, self.index[of_data], -1)


def head_labels(model: Model, subset: Subset) -> np.ndarray:
    """(N,) labels of a subset as classes of the model's head; -1 where unlabelled or where the head lacks the class."""
    index = map_classes(subset.classes, model.class_ids) if subset.classes else None
    if index is None and model.class_ids is None and model.num_classes == len(subset.classes):
        index = np.arange(model.num_classes)
    if index is None or not model.pretrained:
        return np.full(len(subset), -1, np.int64)
    labels: np.ndarray = np.append(index, -1)[subset.labels]
    return labels


def own_classes(teacher: Model) -> tuple[str, ...]:
    """Name the classes of a teacher's head, for data that has none; numbers where the head has no names.

    Raises:
        TutelageError: the teacher does not know any class.
    """
    if not teacher.pretrained or teacher.num_classes < 2 or teacher.random_head:
        reason = "it has no head" if teacher.pretrained else "its weights are random"
        raise TutelageError(
            f"teacher.model={teacher.spec}: no image has a label, so that the teacher must know the classes itself, "
            f"but {reason}; name a teacher that was trained for them, list them behind a zero-shot model "
            "(?classes=FILE), or put the images of each class into a folder"
        )
    return teacher.class_ids or tuple(str(number) for number in range(teacher.num_classes))


def align_heads(
    teachers: Sequence[Model],
    student: Model,
    classes: Sequence[str],
    *,
    new_teachers: bool = False,
    new_student: bool = False,
    all_classes: bool = False,
) -> tuple[list[Model], Model, ClassMapping]:
    """Give all models the same classes in the same order.

    A head that has all classes of the data and others (ImageNet's, with WordNet ids for instance) keeps those of the
    data alone, with their weights. A model whose head does not match gets a new head.

    Args:
        teachers: one or several.
        student: the student.
        classes: of the data.
        new_teachers: give all teachers new heads with the classes of the data, also where theirs match.
        new_student: give the student a new head, also where its own matches.
        all_classes: keep all classes of the first teacher's head where it has all classes of the data. So it is, too,
            where a head of these models cannot be cut, such as that of a stored graph.

    Raises:
        TutelageError: two fitted heads have different classes, or a new head cannot be put on.
    """
    models = [model.recognised(classes) for model in [*teachers, student]]
    replaced = [*[new_teachers] * len(teachers), new_student]
    covered = None if new_teachers else known_classes(models[0], classes)
    target = covered if covered is not None else tuple(classes)
    cut: set[str] = set()
    if not all_classes:
        wanted = target if len(target) == len(classes) else tuple(classes)
        smaller = [
            model if renewed else _cut(model, classes, wanted)
            for model, renewed in zip(models, replaced, strict=True)
        ]
        found = [one for one in smaller if one is not None]
        if len(found) == len(models):
            cut = {
                old.spec for old, one in zip(models, found, strict=True) if one.num_classes < old.num_classes
            }
            models, target = found, wanted
    new: set[str] = set()
    models = [
        _with_head(model, target, classes, new, renewed)
        for model, renewed in zip(models, replaced, strict=True)
    ]
    index = map_classes(classes, target)
    assert index is not None  # the target covers the data by construction
    return models[:-1], models[-1], ClassMapping(target, index, frozenset(new), frozenset(cut - new))


def _cut(model: Model, classes: Sequence[str], target: tuple[str, ...]) -> Model | None:
    """Leave in a head that has the data's classes these alone, in the order of `target`; None where that cannot be."""
    known = known_classes(model, classes)
    if known is None or known == target:
        return model
    index = map_classes(target, known)
    assert index is not None  # the head has all classes of the data
    return model.with_some_classes(target, index.tolist())


def known_classes(model: Model, classes: Sequence[str]) -> tuple[str, ...] | None:
    """Return the classes of a pretrained head that has all classes of the data, in its order, else None.

    A head that names none and has as many outputs as the data has classes is taken to have these.
    """
    if not model.pretrained or model.random_head:
        return None
    if model.class_ids is None:
        return tuple(classes) if model.num_classes == len(classes) else None
    return model.class_ids if map_classes(classes, model.class_ids) is not None else None


def _with_head(
    model: Model, target: tuple[str, ...], classes: Sequence[str], new: set[str], replace: bool
) -> Model:
    own = None if replace else known_classes(model, classes)
    if own == target:
        return model
    if own is not None:
        raise TutelageError(
            f"{model.spec}: its head has {len(own)} classes, the teacher's has {len(target)}, and both match the data; "
            "teacher and student must have the same classes in the same order: use checkpoints with the same head"
        )
    new.add(model.spec)
    return model.with_head(target)
