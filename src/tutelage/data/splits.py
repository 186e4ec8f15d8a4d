"""Which images are for training, model selection and final evaluation: disjoint, stratified, seeded, recorded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.recipe import DataRecipe
from tutelage.core.values import AUTO
from tutelage.data.duplicates import SOURCE, Copies, Known
from tutelage.data.exclude import Exclusion, leave_out
from tutelage.data.joined import join
from tutelage.data.sources.base import ImageSet, open_source, parts_of
from tutelage.data.stratified import hashed, ranked, stratified
from tutelage.data.subset import Subset, sample, whole
from tutelage.data.val_share import ValShare, of_groups

__all__ = ["Splits", "Subset", "make_splits", "recorded_copies", "sample", "stratified", "whole"]

NAMED = {"train": "training", "test": "the final evaluation"}  # roles that get what is left


@dataclass(frozen=True)
class Splits:
    """The subsets of a run. `val` selects, `test` evaluates; no image is in two of them.

    Attributes:
        train: labelled training images; where no training image has a label, all of them.
        val: images for model selection; labelled, unless no training image has a label.
        test: images for the final evaluation; labelled, unless no training image has a label.
        unlabelled: the other training images: of ``data.unlabelled``, and of ``data.train`` those without a label and
            those whose label is not used.
        classes: names in label order; () where no image has a label.
        seed: of the splits.
        notes: sentences about what is not used, such as copies of test images among the training images.
        teacher: images that the teacher is fitted to (``data.teacher``); None: `train`.
        copies: the images that were left out as copies of held-out ones, see `Copies.found`.
        exclusion: what ``data.exclude`` leaves out of all parts but test; None without such a list.
        val_share: what ``data.val_fraction=auto`` chose; None where nothing was left to it.
    """

    train: Subset
    val: Subset
    test: Subset
    unlabelled: Subset | None
    classes: tuple[str, ...]
    seed: int
    notes: tuple[str, ...] = ()
    teacher: Subset | None = None
    copies: Known = field(default_factory=dict)
    exclusion: Exclusion | None = None
    val_share: ValShare | None = None

    @property
    def parts(self) -> dict[str, Subset]:
        """Return the subsets that there are, by their roles."""
        roles = ("train", "val", "test", "unlabelled", "teacher")
        found = {role: getattr(self, role) for role in roles}
        return {role: part for role, part in found.items() if part is not None}

    @property
    def taught(self) -> Subset:
        """Return the images that the teacher is fitted to."""
        return self.train if self.teacher is None else self.teacher

    @property
    def images(self) -> int:
        """Return the number of images that the student learns from, with labels or without."""
        return len(self.train) + len(self.unlabelled or ())

    def with_classes(self, classes: tuple[str, ...]) -> Splits:
        """Give names of classes to images that have no labels."""
        named: dict[str, Any] = {role: replace(part, classes=classes) for role, part in self.parts.items()}
        return replace(self, classes=classes, **named)

    def record(self) -> dict[str, Any]:
        """Sources, sizes and digests as JSON values."""
        return {
            "classes": list(self.classes),
            "seed": self.seed,
            "parts": {role: part.record() for role, part in self.parts.items()},
            "notes": list(self.notes),
            "copies": {step: dict(found) for step, found in self.copies.items()},
            **({"excluded": self.exclusion.record()} if self.exclusion else {}),
        }


def make_splits(recipe: DataRecipe, copies: Known | None = None) -> Splits:
    """Open the sources of a recipe and split them into training, validation and test images.

    Where ``test`` is null, the test images are the training source's own labelled test part; else its own val part
    (if ``val`` is null too); else ``test_fraction`` of the training images. Where ``val`` is null, the validation
    images are the training source's own val part, unless it is the test already; else ``val_fraction`` of the
    training images. Roles that name the same images share them: val gets ``val_fraction``, test gets
    ``test_fraction``, and the rest is for training, or for test where these images are not trained on. Where some
    of the shared images have labels, fractions are of these, and all others are for training.

    Args:
        recipe: names the sources.
        copies: those that an earlier call found (`Splits.copies`); None: they are looked for.

    Raises:
        TutelageError: a source does not exist; a class of val or test is not in train; there is only one class; a
            subset is empty; val or test has no labels, but train has; an image would be in two subsets; every training
            image, or every one of a class, is a copy of a held-out one; ``data.exclude`` names a test image, or what is
            no image.
    """
    sets = _open_roles(recipe)
    classes = _classes(sets)
    notes = list(dict.fromkeys(note for images in sets.values() for note in images.notes))
    finder = Copies(copies)
    left_out = _copies_of_others(sets, finder, notes) if recipe.drop_duplicates else np.array([], np.int64)
    groups = _groups(sets).values()
    share = of_groups(groups, left_out) if recipe.val_fraction == AUTO else None
    recipe = recipe.model_copy(update={"val_fraction": share.fraction}) if share else recipe
    parts = {
        role: part
        for group in groups
        for role, part in _share(group, recipe, left_out if "train" in group else left_out[:0], notes).items()
    }
    exclusion = None
    if recipe.exclude:
        parts, exclusion = leave_out(parts, sets, recipe.exclude)
        notes += [exclusion.note()] if exclusion.left_out else []
    parts = {
        role: _limited(role, _with_classes(part, classes), recipe, notes) for role, part in parts.items()
    }
    if "unlabelled" in parts:  # its folders may be no classes at all
        parts["unlabelled"] = replace(parts["unlabelled"], labels_hidden=True)
    for role, part in parts.items():
        _check(role, part, parts["train"].labelled)
    _check_disjoint(parts)
    if recipe.drop_duplicates:
        _drop_copies(parts, finder, notes)
    parts |= _labelled_apart(parts["train"], parts.get("unlabelled"), recipe)
    return Splits(
        parts["train"],
        parts["val"],
        parts["test"],
        parts.get("unlabelled"),
        classes,
        recipe.split_seed,
        tuple(notes),
        parts.get("teacher"),
        finder.found,
        exclusion,
        share,
    )


def recorded_copies(path: Path) -> Known | None:
    """The copies that a run's record of its splits names; None where it is of an older version, or not there."""
    record = read_json(path) if path.exists() else {}
    found = record.get("copies") if isinstance(record, dict) else None
    return found if isinstance(found, dict) else None


def _open_roles(recipe: DataRecipe) -> dict[str, ImageSet]:
    """The set of images that each role takes from, by the rules in `make_splits`."""
    train = _open(recipe.train, "train")
    given = {"val": recipe.val, "test": recipe.test}
    own = {
        part: open_source(recipe.train, part)
        for part in parts_of(recipe.train)
        if given.get(part, "") is None
    }
    labelled = {part: images for part, images in own.items() if images.labels is not None}
    used = labelled or ({} if train.labels is not None else own)
    train.notes += tuple(
        f"{images.name}: its images have no labels and are not used"
        for part, images in own.items()
        if part not in used
    )
    own = used
    test = _open(recipe.test, "test", "val") if recipe.test else own.get("test")
    if test is None and recipe.val is None:
        test = own.get("val")
    val = _open(recipe.val, "val", "test") if recipe.val else own.get("val")
    if recipe.val is None and val and test and val.origin == test.origin:
        val = None
    roles = {"train": train, "val": val or train, "test": test or train}
    if recipe.unlabelled:
        roles["unlabelled"] = _open(recipe.unlabelled, "unlabelled", "train")
    if recipe.teacher:
        roles["teacher"] = _open(recipe.teacher, "teacher", "train")
    if recipe.max_megapixels is not None:
        for images in roles.values():
            images.max_pixels = round(1e6 * recipe.max_megapixels)
    return roles


def _open(spec: str, *preferred: str) -> ImageSet:
    """Open a source; where it has parts, the first preferred one that it has."""
    own = parts_of(spec)
    return open_source(spec, next((part for part in preferred if part in own), None))


def _classes(sets: dict[str, ImageSet]) -> tuple[str, ...]:
    """The classes of the run in order: those of train, or of val or test where the images before have no labels."""
    roles = ("train", "val", "test", "teacher")
    labelled = [sets[role] for role in roles if role in sets and sets[role].classes]
    if not labelled:
        return ()
    first = labelled[0]
    classes = first.classes or ()
    if len(classes) < 2:
        raise TutelageError(
            f"{first.name}: has only one class ({classes[0]}); a classifier needs two or more{_hint(first)}"
        )
    for other in labelled[1:]:
        for name in other.classes or ():
            if name not in classes:
                close = difflib.get_close_matches(name, classes, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise TutelageError(
                    f"{other.name}: its class {name!r} is not in {first.name}{hint}{_hint(first)}"
                )
    return classes


def _hint(images: ImageSet) -> str:
    """What was found and not used, where that may be the reason why classes are missing."""
    return f" ({' '.join(images.notes)})" if images.notes else ""


def _groups(sets: dict[str, ImageSet]) -> dict[str, dict[str, ImageSet]]:
    """Roles that take from the same images, by the origin of these."""
    groups: dict[str, dict[str, ImageSet]] = {}
    for role, images in sets.items():
        groups.setdefault(images.origin, {})[role] = images
    return groups


def _share(
    group: dict[str, ImageSet], recipe: DataRecipe, left_out: np.ndarray, notes: list[str]
) -> dict[str, Subset]:
    """Split one set of images, without some that are left out, among the roles that take from it.

    A sentence about val is added to `notes` where ``data.val_limit`` leaves it fewer images than its fraction.
    """
    images = next(iter(group.values()))
    rest = np.setdiff1d(np.arange(len(images)), left_out)
    to_share = len(rest) if images.labels is None else int(np.sum(images.labels[rest] >= 0))
    for alone in ("unlabelled", "teacher"):
        if alone in group and len(group) > 1:
            others = ", ".join(role for role in group if role != alone)
            raise TutelageError(
                f"data.{alone}={images.name}: these images are {others} images already; name others"
            )
    fractions = {"test": recipe.test_fraction, "val": recipe.val_fraction}
    keeper = next(role for role in ("train", "test", "val", "unlabelled", "teacher") if role in group)
    shares: dict[str, Subset] = {}
    for role, fraction in fractions.items():
        if role in group and role != keeper:
            labelled = rest if images.labels is None else rest[images.labels[rest] >= 0]
            wanted, what = round(fraction * to_share), f"{fraction:g}"
            if role == "val" and (most := _most_of_val(recipe)) is not None and wanted > most:
                fewer = (
                    f"of the {wanted:,} images that data.val_fraction={fraction:g} takes from {images.name}"
                )
                notes.append(_fewer_of_val(most, fewer, f"are for {NAMED[keeper]}"))
                wanted, what = most, f"{most:,}"
            taken = stratified(images, labelled, wanted, recipe.split_seed, spare=True)
            rest = np.setdiff1d(rest, taken)
            split = f"{what} of {images.name}, stratified, seed {recipe.split_seed}"
            shares[role] = Subset(images, taken, split=split)
    split = f"what is left of {images.name}" if shares else "all"
    if len(left_out):
        split += f"; without {len(left_out):,} copies of val or test images"
    shares[keeper] = Subset(images, rest, split=split)
    return shares


def _with_classes(part: Subset, classes: tuple[str, ...]) -> Subset:
    own: Sequence[str] | None = part.images.classes
    if own is None or tuple(own) == classes:
        return replace(part, classes=classes)
    place = {name: index for index, name in enumerate(classes)}
    return replace(part, classes=classes, relabel=np.array([place.get(name, -1) for name in own], np.int64))


def _limited(role: str, part: Subset, recipe: DataRecipe, notes: list[str]) -> Subset:
    """Keep at most ``data.limit`` images of a part, and of val at most ``data.val_limit``, which adds to `notes`."""
    most = recipe.limit
    if role == "val" and (bound := _most_of_val(recipe)) is not None and len(part) > bound:
        most = bound
        notes.append(
            _fewer_of_val(most, f"of the {len(part):,} images of {part.images.name}", "are not used")
        )
    if most is None or len(part) <= most:
        return part
    kept = stratified(part.images, part.indices, most, recipe.split_seed)
    return replace(part, indices=kept, split=f"{part.split}; {most} of these, stratified")


def _most_of_val(recipe: DataRecipe) -> int | None:
    """``data.val_limit``, unless ``data.limit`` leaves no more than that anyway."""
    if recipe.val_limit is None or (recipe.limit is not None and recipe.limit <= recipe.val_limit):
        return None
    return recipe.val_limit


def _fewer_of_val(most: int, of_which: str, others: str) -> str:
    return (
        f"data.val_limit={most}: {most:,} {of_which} select models, the same share of each class; the others {others} "
        "(data.val_limit=null lifts the limit)"
    )


def _labelled_apart(train: Subset, unlabelled: Subset | None, recipe: DataRecipe) -> dict[str, Subset]:
    """Keep the labelled training images in train, and add the others to the unlabelled images.

    ``data.labels_per_class`` keeps the labels of so many images of each class; as in `stratified`, these are the ones
    whose hashed ids come first, so that a larger number keeps the same images and more.
    """
    most = recipe.labels_per_class
    if not train.labelled:
        if most is not None:
            raise TutelageError(f"data.labels_per_class={most}: no image of {train.images.name} has a label")
        return {}
    used = train.labels >= 0
    if most is not None:
        order, _, ranks = ranked(train.labels, train.ids, recipe.split_seed)
        used[order[ranks >= most]] = False
    if used.all():
        return {}
    split = (
        train.split if most is None else f"{train.split}; the labels of {most} images of each class are used"
    )
    rest = replace(
        train, indices=train.indices[~used], labels_hidden=True, split=f"{train.split}; those without a label"
    )
    return {
        "train": replace(train, indices=train.indices[used], split=split),
        "unlabelled": join(rest, unlabelled) if unlabelled else rest,
    }


def _check(role: str, part: Subset, labelled: bool) -> None:
    """Refuse an empty subset, and a val or test without labels where the training images have some."""
    if len(part) == 0:
        raise TutelageError(
            f"data.{role}: no image of {part.images.name} is left for it ({part.split}); add images or "
            "change data.val_fraction and data.test_fraction"
        )
    if role == "teacher" and not part.labelled:
        raise TutelageError(
            f"data.teacher={part.images.name}: none of its images has a label, and the teacher is fitted to them; name "
            "labelled images"
        )
    if role in {"val", "test"} and labelled and not part.labelled:
        raise TutelageError(
            f"data.{role}={part.images.name}: its images have no labels, which {role} needs; put them into a "
            "folder for each class"
        )


def _check_disjoint(parts: dict[str, Subset]) -> None:
    """Compare images by where they are stored, so that a folder inside another one is noticed.

    Two links to one file in one source are copies, which `_drop_copies` looks for.
    """
    if len({part.images.origin for part in parts.values()}) == 1:
        return
    owner: dict[int, str] = {}
    for role, part in parts.items():
        for position in range(len(part)):
            key = hashed(0, f"{part.images.place(int(part.indices[position]))}")
            first = owner.setdefault(key, role)
            if first != role and parts[first].images.origin != part.images.origin:
                raise TutelageError(
                    f"data.{role}={part.images.name}: {part.id(position)} is in data.{first} too; "
                    "name sources that share no image"
                )


def _copies_of_others(sets: dict[str, ImageSet], copies: Copies, notes: list[str]) -> np.ndarray:
    """The indices of the training source's images that are copies of those of other sources, for val or test."""
    train = sets["train"]
    others = [sets[role] for role in ("val", "test") if sets[role].origin != train.origin]
    held = [(images, np.arange(len(images))) for images in others]
    return copies.positions(SOURCE, (train, np.arange(len(train))), held, notes)


def _drop_copies(parts: dict[str, Subset], copies: Copies, notes: list[str]) -> None:
    """Leave out training images that are copies of val or test images; a note on each subset's is added to `notes`."""
    held = [(parts[role].images, parts[role].indices) for role in ("val", "test")]
    for role in (role for role in ("train", "unlabelled", "teacher") if role in parts):
        part = parts[role]
        found = copies.positions(role, (part.images, part.indices), held, notes)
        if len(found):
            split = f"{part.split}; without {len(found):,} copies of val or test images"
            parts[role] = replace(part, indices=np.delete(part.indices, found), split=split)
