"""What can be known of a recipe before PyTorch is imported and before a run directory is made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import ExportRecipe, Recipe
from tutelage.core.run_dir import check_name
from tutelage.data.splits import make_splits
from tutelage.deploy.runtimes.base import is_installed
from tutelage.deploy.runtimes.registry import runtimes_of
from tutelage.deploy.web.runtime import web_runtime

SMALLEST_MB = 50  # a disk with less free space takes no run


def check_early(recipe: Recipe, root: Path) -> None:
    """Refuse what cannot work: missing packages, the place of the run, the data, and a batch larger than the data.

    Args:
        recipe: of the run.
        root: directory in which the run directory will be made.

    Raises:
        TutelageError: one line that names the key, what was given, and what is expected.
    """
    for name in recipe.track:
        _require(f"track=[{name}]", (name,), name)
    if recipe.export.enabled:
        for runtime in runtimes_of(recipe.export.formats):
            _require(
                f"--export (format {runtime.format})", runtime.makers, runtime.maker_extra or runtime.extra
            )
        if recipe.export.web:
            web_runtime(recipe.export.formats)
    if recipe.name is not None:
        check_name(root, recipe.name)
    check_place(root)
    # copies are looked for when the run begins: for that, the beginnings of all files may have to be read
    splits = make_splits(recipe.data.model_copy(update={"drop_duplicates": False}))
    images = splits.images
    if recipe.train.batch_size > images:
        raise TutelageError(
            f"train.batch_size={recipe.train.batch_size}: there are {images} training images in "
            f"{recipe.data.train}; use at most {images}, such as train.batch_size={max(2, images // 4)}"
        )


def can_export() -> bool:
    """Whether the packages that exporting needs by default are installed."""
    return not any(runtime.missing for runtime in runtimes_of(ExportRecipe().formats))


def check_place(place: Path) -> None:
    """Refuse a directory that cannot be made or written, or whose disk is full.

    Raises:
        TutelageError: one line that names the directory.
    """
    there = nearest_there(place)
    if not there.is_dir():
        raise TutelageError(
            f"{place}: cannot be created, since {there} is not a directory; name another place"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise TutelageError(f"{place}: cannot be written; get write access to {there}, or name another place")
    disk = shutil.disk_usage(there)
    free = disk.free / 1e6
    if disk.total and free < SMALLEST_MB:  # a file system without a size, such as /proc, says nothing
        raise TutelageError(f"{place}: the disk has {free:.0f} MB left; free at least {SMALLEST_MB} MB")


def nearest_there(place: Path) -> Path:
    """Return the place, or the nearest directory above it that exists."""
    there = place.absolute()
    while not there.exists() and not there.is_symlink():
        there = there.parent
    return there


def _require(what: str, packages: tuple[str, ...], extra: str) -> None:
    for name in packages:
        if not is_installed(name):
            raise TutelageError(
                f"{what}: needs {name}, which is not installed; run `pip install 'tutelage[{extra}]'`"
            )
