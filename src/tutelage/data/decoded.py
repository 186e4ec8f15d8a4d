"""Which images of a run are decoded once, where the copies are stored, and how large all of them may become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.data.imagecache import CHUNK, CachedImages, cache_side, cached
from tutelage.data.input_spec import InputSpec
from tutelage.data.splits import Splits, Subset

# These are read in every epoch. Test is read rarely, and always from its files, so that no copy can alter the figures.
ROLES = ("train", "val", "unlabelled", "teacher")


def decode_once(
    splits: Splits,
    specs: Sequence[InputSpec],
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    before: dict[str, int | None] | None = None,
) -> tuple[Splits, dict[str, int | None]]:
    """The splits with images read from decoded copies, made where they are missing.

    The copies of all runs that share a directory together stay below ``data.cache_mb``. What does not fit is read from
    its files, in every epoch.

    Args:
        splits: of the run.
        specs: inputs of all models.
        recipe: of the run.
        directory: holds the copies of any number of runs.
        progress: shows each copy's size before it is made.
        before: what was decided when the run began, if it is resumed. It is kept, since it decides what the models
            see.

    Returns:
        The splits; and for each role the short side of its copy in pixels, None where there is no copy.

    Raises:
        TutelageError: a copy that the resumed run had cannot be made again.
    """
    side = cache_side(specs, recipe.view)
    decided: dict[str, int | None] = {}
    copies: dict[str, Any] = {}
    for role in ROLES:
        subset = getattr(splits, role)
        wanted = side if before is None else before.get(role)
        if subset is None or wanted is None or not recipe.data.cache or subset.images.decoded:
            decided[role] = None
            continue
        copy = _copy(subset, wanted, recipe, directory, progress)
        decided[role] = wanted if isinstance(copy.images, CachedImages) else None
        if before is not None and decided[role] is None:
            raise TutelageError(
                f"{directory}: the run began with decoded images, which cannot be stored there now; free some "
                "space or raise data.cache_mb in its recipe.yaml"
            )
        copies[role] = copy
    return replace(splits, **copies), decided


def _copy(subset: Subset, side: int, recipe: Recipe, directory: Path, progress: Progress) -> Subset:
    room = recipe.data.cache_mb - _megabytes(directory)
    done = 0

    def step(images: int, count: int) -> None:
        nonlocal done
        if not done:
            progress.begin("images", -(-count // CHUNK))
        progress.step({}, images - done)
        done = images

    try:
        return cached(subset, side, directory, room, progress=step, say=progress.say)
    finally:
        if done:
            progress.end()


def _megabytes(directory: Path) -> float:
    """Size of all files below a directory. Files that are deleted meanwhile do not count."""
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total / 1e6
