"""The recipe: everything that decides what a run does, one pydantic model per component.

A recipe is read from YAML, changed by dotted overrides (``train.epochs=5``) and written back with all
defaults spelled out. Unknown keys are refused with the nearest right name; old names of keys still work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ValidationError, model_validator

from tutelage.core.components import (
    DataRecipe,
    ExportRecipe,
    FitRecipe,
    LossRecipe,
    MeasureRecipe,
    PreflightRecipe,
    SelectionRecipe,
    StudentRecipe,
    TargetsRecipe,
    TeacherRecipe,
    TrainRecipe,
    ViewRecipe,
)
from tutelage.core.errors import TutelageError
from tutelage.core.invalid import first_error
from tutelage.core.recipe_tree import (
    as_model,
    has_key,
    parse_override,
    read_yaml,
    rename_keys,
    set_key,
    set_keys,
)
from tutelage.core.values import Component, Text

__all__ = [
    "DataRecipe",
    "ExportRecipe",
    "FitRecipe",
    "LossRecipe",
    "MeasureRecipe",
    "PreflightRecipe",
    "Recipe",
    "SelectionRecipe",
    "StudentRecipe",
    "TargetsRecipe",
    "TeacherRecipe",
    "TrainRecipe",
    "ViewRecipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]


class Recipe(Component):
    """The whole configuration of a run."""

    name: Text | None = None
    """Name of the run directory; null: made from the models' names and the time."""
    teacher: Annotated[
        TeacherRecipe, BeforeValidator(as_model, json_schema_input_type=TeacherRecipe | str)
    ] = TeacherRecipe()
    student: Annotated[
        StudentRecipe, BeforeValidator(as_model, json_schema_input_type=StudentRecipe | str)
    ] = StudentRecipe()
    data: DataRecipe = DataRecipe()
    view: ViewRecipe = ViewRecipe()
    loss: LossRecipe = LossRecipe()
    train: TrainRecipe = TrainRecipe()
    targets: TargetsRecipe = TargetsRecipe()
    preflight: PreflightRecipe = PreflightRecipe()
    selection: SelectionRecipe = SelectionRecipe()
    measure: MeasureRecipe = MeasureRecipe()
    export: ExportRecipe = ExportRecipe()
    control: bool = True
    """Also train with hard labels only, on the same budget of steps, to measure what the teacher adds."""
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Trackers that the run also writes to, such as [tensorboard]."""

    @property
    def random_start(self) -> bool:
        """Whether the student starts from random weights, against which no comparison means anything."""
        return self.train.from_scratch or self.student.model.endswith("@none")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Recipe:
        if not self.loss.terms and self.loss.weight == 0 and self.loss.label_weight == 0:
            raise ValueError(
                "loss.weight and loss.label_weight are both 0: there is nothing to learn from; set one of them above 0"
            )
        return self

    @model_validator(mode="after")
    def _has_int4(self) -> Recipe:
        if self.export.int4 and not (self.export.int8 and "litert" in self.export.formats):
            raise ValueError(
                "export.int4: it makes a smaller form of LiteRT's int8 file; add litert to export.formats with "
                "export.int8=true, or leave export.int4 out"
            )
        return self

    @model_validator(mode="after")
    def _has_a_fit(self) -> Recipe:
        if self.data.teacher is not None and self.teacher.fit == "no":
            raise ValueError(
                "data.teacher: its images are for fitting the teacher, and teacher.fit=no fits it to none; leave one "
                "of the two out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_out_of_fold(self) -> Recipe:
        if not self.targets.folds:
            return self
        if self.teacher.fit != "probe":
            raise ValueError(
                "targets.folds: a full fit of the teacher for each fold takes too long, so only a linear probe can "
                "have folds; set teacher.fit=probe, or leave targets.folds out"
            )
        if self.data.teacher is not None:
            raise ValueError(
                "targets.folds: with data.teacher, the teacher is fitted to none of the student's images, so that all "
                "of its answers are out of fold; leave one of the two out"
            )
        if self.view.mixup or self.view.cutmix:
            raise ValueError(
                "targets.folds: a mixed image is in two folds; set view.mixup and view.cutmix to 0, or leave "
                "targets.folds out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_cached(self) -> Recipe:
        if self.targets.mode == "live":
            return self
        if self.view.mixup or self.view.cutmix:
            raise ValueError(
                "targets.mode=cached: a mixed image's partner changes with the order of the batch, so its target "
                "cannot be kept; set view.mixup and view.cutmix to 0, or targets.mode=live"
            )
        others = [name for name in self.loss.distils_with if name != "kl"]
        if self.targets.top_k and others:
            raise ValueError(
                f"targets.top_k: only the loss kl can work with the largest classes, not {others[0]}; "
                "leave targets.top_k out"
            )
        return self


def load_recipe(
    path: Path | None,
    overrides: list[str] | None = None,
    options: Mapping[str, tuple[str, Any]] | None = None,
) -> Recipe:
    """Read a recipe, apply dotted overrides, and set what was given as options of a command.

    Args:
        path: a YAML file, or None for the defaults.
        overrides: ``key.key=value`` each; values are read as YAML (``train.lr=1e-4``, ``track=[mlflow]``).
        options: by name (``--epochs``) the dotted key and the value, which is taken as it is; None: not given.

    Raises:
        TutelageError: names the file and the key, and the nearest right name of an unknown key; or an option and an
            override disagree.
    """
    where = str(path) if path else "recipe"
    tree = rename_keys(read_yaml(path), where) if path else {}
    set_keys(tree, [parse_override(override) for override in overrides or []])
    given = {option: entry for option, entry in (options or {}).items() if entry[1] is not None}
    chosen = copy.deepcopy(tree)
    for key, value in given.values():
        set_key(chosen, key, value)
    recipe = parse_recipe(chosen, where)
    for option, (key, value) in given.items():
        for override in overrides or []:
            _refuse_contradiction(option, key, value, override)
    return recipe


def _refuse_contradiction(option: str, key: str, value: Any, override: str) -> None:
    """Refuse an override that gives a key another value than an option does."""
    overridden: dict[str, Any] = {}
    set_keys(overridden, [parse_override(override)])
    both = copy.deepcopy(overridden)
    set_key(both, key, value)
    if has_key(overridden, key) and parse_recipe(both) != parse_recipe(overridden):
        given = option if isinstance(value, bool) else f"{option} {value}"
        raise TutelageError(f"{given} and {override} disagree; give one of them")


def parse_recipe(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a plain dictionary; errors become one line that names the key."""
    try:
        return Recipe.model_validate(rename_keys(tree, where))
    except ValidationError as error:
        raise TutelageError(f"{where}: {first_error(error, Recipe)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
