"""What a run was begun with: its recipe, so that later edits are seen, and the directory that its paths start from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.recipe_tree import flat
from tutelage.core.run_dir import Run

# What may change before a resume, since it changes neither weights nor figures. A key stands for all below it.
FREE = (
    "name",
    "data.workers",
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


def record_edits(run: Run, recipe: Recipe) -> None:
    """Refuse edits as `check_edits` does, and record the others in ``begun.json``.

    Raises:
        TutelageError: names the key with both values.
    """
    if edits := check_edits(run, recipe):
        content = read_json(run.begun)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        content["edits"] += [edit | {"at": at} for edit in edits]
        write_json(run.begun, content | {"recipe": recipe.model_dump(mode="json")})


def check_edits(run: Run, recipe: Recipe) -> list[dict[str, Any]]:
    """Refuse a recipe that was changed since the run began, where the change concerns the results.

    Runs of earlier versions have no ``begun.json``, and are not checked. A key that only one of the two recipes has is
    of another version of tutelage, unless it is a part of what the other recipe has as a whole.

    Returns:
        The other changes: key, value before (``from``) and now (``to``) of each.

    Raises:
        TutelageError: names the key with both values.
    """
    if not run.begun.exists():
        return []
    trees = entry(run.begun, "recipe"), recipe.model_dump(mode="json")
    before, now = map(flat, trees)
    changed = [key for key in now if key in before and before[key] != now[key]]
    # auto became {epochs: 3}, for instance, or the other way round
    changed += [key for key in before if any(other.startswith(f"{key}.") for other in now)]
    changed += [key for key in now if any(other.startswith(f"{key}.") for other in before)]
    if any(key.startswith("loss.options.") for key in before.keys() ^ now.keys()):
        changed.append("loss.options")
    edits = [
        dict(zip(("key", "from", "to"), (key, *(_value(t, key) for t in trees)), strict=True))
        for key in changed
    ]
    for edit in edits:
        if not any(edit["key"] == free or edit["key"].startswith(f"{free}.") for free in FREE):
            raise TutelageError(
                f"{run.recipe}: {edit['key']} was {edit['from']!r} when the run began and is now {edit['to']!r}, which "
                "would mix two recipes; put it back, or begin a new run with `tutelage distill`"
            )
    return edits


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part)
    return tree


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
    """Yield what may be a relative path in a recipe: data, lists and weights, without kind and part."""
    data = (recipe.data.train, recipe.data.val, recipe.data.test, recipe.data.unlabelled, recipe.data.teacher)
    models = (recipe.teacher.model, *recipe.teacher.others, recipe.student.model)
    for text in (
        *data,
        recipe.data.exclude,
        *(model.partition("@")[2] for model in models),
        recipe.targets.directory,
    ):
        for path in {text or "", (text or "").partition(":")[2]}:
            for name in {path, path.rpartition("#")[0]}:
                if name and not os.path.isabs(name):
                    yield Path(name)
