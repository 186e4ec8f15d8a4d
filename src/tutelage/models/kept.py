"""The student and the teacher that a run keeps, loaded from its directory."""

from __future__ import annotations

from dataclasses import replace

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry
from tutelage.core.recipe import Recipe
from tutelage.core.run_dir import Run
from tutelage.models.registry import architecture, load_model
from tutelage.models.source import Model


def kept_student(run: Run, recipe: Recipe) -> Model:
    """Load the student that a run selected.

    Raises:
        TutelageError: the run has none yet.
    """
    if not run.student.is_file():
        raise TutelageError(f"{run.path}: has no student yet; go on with `tutelage resume {run.path}`")
    return load_model(f"{architecture(recipe.student.model)}@{run.student}")


def kept_teacher(run: Run, recipe: Recipe) -> Model:
    """Load the first teacher as it taught: fitted to the data, or as the recipe names it.

    Raises:
        TutelageError: its weights are gone.
    """
    wish = recipe.teacher
    if run.teacher.is_file():
        return load_model(f"{architecture(wish.model)}@{run.teacher}")
    model = load_model(wish.model).at(int(entry(run.preflight, "teacher", "resolution")))
    if wish.crop_pct is None:
        return model
    return replace(model, input_spec=replace(model.input_spec, crop_pct=wish.crop_pct))
