"""The models that are compared: the teacher and candidate students, at one or several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe
from tutelage.distillation.probe import can_be_probed
from tutelage.evaluation import resolution
from tutelage.models import timm
from tutelage.models.class_mapping import ClassMapping, align_heads
from tutelage.models.dry_run import check_resolution, problem
from tutelage.models.registry import architecture, load_model, timm_name
from tutelage.models.source import Model
from tutelage.pipeline.advise.advice import RANDOM

AnyModel = str | Model
SHARES = (1.0, 0.57, 0.43)  # of a student's own resolution, where none is named; 128 and 96 px of 224
MULTIPLE = 8  # pixels: resolutions are rounded to it
LIGHTER = 0.8  # a student that is not named has at most this share of the teacher's parameters
MOST = 3  # architectures of students that are not named
WITHOUT_WEIGHTS = "tf_efficientnet_lite0@none"  # shown where no student's weights are at hand


@dataclass(frozen=True)
class Contender:
    """A model with a head for the data's classes, at the resolution to be measured.

    Attributes:
        model: as a run would use it.
        own_head: (data classes,) places of the classes in its own fitted head; None where that head is new.
        why: it cannot be probed; "" where it can.
        native: its own resolution, in pixels.
        is_cut: its own head was cut to the data's classes from a larger one, so that a run fits it to them.
    """

    model: Model
    own_head: np.ndarray | None
    why: str
    native: int
    is_cut: bool = False


def contenders(
    teacher: AnyModel | None,
    students: Sequence[AnyModel],
    classes: Sequence[str],
    teacher_resolution: int | None,
    student_resolutions: Sequence[int],
) -> list[Contender]:
    """Load the teacher and the students, the teacher first.

    Args:
        teacher: None: the recipe's default.
        students: () takes models whose pretrained weights are on this machine, see `_at_hand`.
        classes: of the data.
        teacher_resolution: in pixels; None: the teacher's own.
        student_resolutions: in pixels; () takes `SHARES` of each student's own, as far as it works there.

    Raises:
        TutelageError: a model cannot be loaded, does not work at a resolution that was named, or cannot have the same
            classes as the teacher; or the teacher has random weights.
    """
    teacher = Recipe().teacher.model if teacher is None else teacher
    first = _loaded(teacher)
    if not first.pretrained:
        raise TutelageError(
            f"--teacher {first.spec}: random weights have nothing to teach; name a model with trained weights, such as "
            f"{Recipe().teacher.model} or NAME@FILE.safetensors"
        )
    native = first.input_spec.height
    if (name := _timm_name(teacher)) and teacher_resolution:
        check_resolution(name, teacher_resolution, f"--teacher-resolution={teacher_resolution}")
    first = first if teacher_resolution is None else resolution.at(first, teacher_resolution)
    found: list[Contender] = []
    for student in students or _at_hand(first):
        model = _loaded(student)
        (aligned,), model, mapping = align_heads([first], model, classes)
        if not found:
            found.append(_contender(aligned, mapping, first.spec, native))
        native = model.input_spec.height
        at = _at(model, _timm_name(student), student_resolutions)
        found += [_contender(one, mapping, model.spec, native) for one in at]
    return found


def _loaded(model: AnyModel) -> Model:
    return load_model(model) if isinstance(model, str) else model


def _contender(model: Model, mapping: ClassMapping, spec: str, native: int) -> Contender:
    why, new = "", spec in mapping.new
    if not model.pretrained:
        why = RANDOM
    elif new and not can_be_probed(model):
        why = "its head is not one linear layer, so that it cannot be probed"
    return Contender(model, None if new else mapping.index, why, native, spec in mapping.cut)


def _timm_name(model: AnyModel) -> str | None:
    return timm_name(model) if isinstance(model, str) else None


def _at(model: Model, name: str | None, resolutions: Sequence[int]) -> list[Model]:
    """Return a model at each resolution; where none is named, at those shares of its own at which it works.

    Args:
        model: at its own resolution.
        name: timm's, by which resolutions are checked; None: another library's.
        resolutions: in pixels.
    """
    if resolutions:
        for pixels in resolutions if name else ():
            check_resolution(name or "", pixels, f"--student-resolution={pixels}")
        return [resolution.at(model, pixels) for pixels in dict.fromkeys(resolutions)]
    own = model.input_spec.height
    found = [model]
    for share in SHARES[1:]:
        pixels = max(MULTIPLE, round(own * share / MULTIPLE) * MULTIPLE)
        if name and not problem(name, pixels):  # whether another library's network works is not known
            found.append(resolution.at(model, pixels))
    return found


def _at_hand(teacher: Model) -> list[str]:
    """Name students that are smaller than the teacher and whose pretrained weights need no network.

    Of more than `MOST` architectures, the smallest, the largest and those between are taken.
    """
    limit = LIGHTER * sum(parameter.numel() for parameter in teacher.module.parameters())
    sizes: dict[str, int] = {}
    names: dict[str, str] = {}
    for name in timm.at_hand():
        bare = name.partition(".")[0]
        if bare in names or bare == architecture(teacher.spec).partition(".")[0]:
            continue
        size = timm.parameters(name)
        if size <= limit:
            names[bare], sizes[bare] = name, size
    ordered = [names[bare] for bare in sorted(sizes, key=sizes.__getitem__)]
    places = np.unique(np.linspace(0, len(ordered) - 1, min(MOST, len(ordered))).round().astype(int))
    return [ordered[place] for place in places] or [WITHOUT_WEIGHTS]
