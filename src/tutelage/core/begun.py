"""What a run was begun with: its recipe, so that later edits are seen, and the directory that its paths start from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.recipe_tree import flat
from tutelage.core.run_dir import Run

# What may change before a resume, since it changes neither weights nor figures. A key stands for all below it.
FREE = (
    "name",
    "data.workers",
    "data.cache",
    "data.cache_mb",
    "data.max_bad_images",
    "train.checkpoint_minutes",
    "train.max_bad_steps",
    "preflight.allow_weak_teacher",
    "export",
    "track",
)


def record_begin(run: Run, recipe: Recipe) -> None:
    """Write ``begun.json``."""
    content = {"directory": str(Path.cwd()), "recipe": recipe.model_dump(mode="json"), "edits": []}
    write_json(run.begun, content)


def check_edits(run: Run, recipe: Recipe) -> None:
    """Refuse a recipe that was changed since the run began, where the change concerns the results; record others.

    Runs of earlier versions have no ``begun.json``, and are not checked.

    Raises:
        TutelageError: names the key with both values.
    """
    if not run.begun.exists():
        return
    content = read_json(run.begun)
    before, now = flat(entry(run.begun, "recipe")), flat(recipe.model_dump(mode="json"))
    changed = [key for key, value in now.items() if key in before and before[key] != value]
    # a mapping that was empty, or that is now, has other keys
    changed += sorted(
        key for key in before.keys() ^ now.keys() if key.startswith(("loss.options", "loss.terms"))
    )
    for key in changed:
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise TutelageError(
                f"{run.recipe}: {key} was {before.get(key)!r} when the run began and is now {now.get(key)!r}, which "
                "would mix two recipes; put it back, or begin a new run with `tutelage distill`"
            )
    if changed:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        content["edits"] += [{"key": k, "from": before.get(k), "to": now.get(k), "at": at} for k in changed]
        write_json(run.begun, content | {"recipe": recipe.model_dump(mode="json")})


@contextlib.contextmanager
def where_it_began(run: Run) -> Iterator[Run]:
    """Work in the directory in which a run was begun, where a relative path of its recipe exists there only.

    Yields:
        The run, with an absolute path where the directory is another one.
    """
    home = Path(entry(run.begun, "directory")) if run.begun.exists() else Path.cwd()
    moved = home != Path.cwd() and home.is_dir()
    if moved and any(
        (home / path).exists() and not path.exists() for path in _paths(load_recipe(run.recipe))
    ):
        run = Run(run.path.resolve())
        with contextlib.chdir(home):
            yield run
    else:
        yield run


def _paths(recipe: Recipe) -> Iterator[Path]:
    """Yield what may be a relative path in a recipe: data and weights, without kind and part."""
    data = (recipe.data.train, recipe.data.val, recipe.data.test, recipe.data.unlabelled)
    models = (recipe.teacher.model, *recipe.teacher.others, recipe.student.model)
    for text in (*data, *(model.partition("@")[2] for model in models), recipe.targets.directory):
        for path in {text or "", (text or "").partition(":")[2]}:
            for name in {path, path.rpartition("#")[0]}:
                if name and not os.path.isabs(name):
                    yield Path(name)
