"""What is said of a name that is no model's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import nearest
from tutelage.core.recipe_tree import as_model, read_yaml
from tutelage.core.run_dir import Run
from tutelage.models.weights import PICKLES

NEAR = 0.6  # similarity from which another name is taken to be meant
WRITE = (
    "write NAME@WEIGHTS with one of timm's names, such as tf_efficientnet_lite0 or resnet50@best.safetensors"
)


def unknown_model(name: str, known: Iterable[str]) -> TutelageError:
    """Return the error for a name that is no model's, with what was probably meant.

    Args:
        name: without weights, as it was given; people also give runs, files of weights and other paths.
        known: the names of models.
    """
    path = Path(name)
    run = Run(path)
    if run.recipe.is_file():
        student = as_model(read_yaml(run.recipe).get("student"))
        architecture = str(student.get("model") if isinstance(student, dict) else "NAME").partition("@")[0]
        return TutelageError(f"{name}: a run, not a model; its student is {architecture}@{run.student}")
    if path.is_file() and path.suffix.lower() in {".safetensors", *PICKLES}:
        return TutelageError(
            f"{name}: a file of weights, not a model; write its architecture before it, such as resnet50@{name}"
        )
    if name and path.exists():
        return TutelageError(f"{name}: neither a model, nor a run, nor a file of weights; {WRITE}")
    if len(path.parts) > 1:
        return TutelageError(f"{name}: there is no such run or file, and no model has this name; {WRITE}")
    near = nearest(name.partition(".")[0], known, NEAR)
    hint = f"; did you mean {near!r}?" if near else f", and there is no such path; {WRITE}"
    return TutelageError(f"unknown model {name!r}{hint}")
