"""Which images of a run are decoded once, where the copies are stored, and how large all of them may become."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from copy import copy as same
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.core.runtime import Runtime
from tutelage.data import packing
from tutelage.data.imagecache import CHUNK, CachedImages, cache_side, cached
from tutelage.data.input_spec import InputSpec
from tutelage.data.packed import estimated_mb, opened, read_store, store_place
from tutelage.data.splits import Splits, Subset

log = logging.getLogger(__name__)
# These are read in every epoch. Test is read rarely, and always from its files, so that no copy can alter the figures.
ROLES = ("train", "val", "unlabelled", "teacher")
Kind = Literal["raw", "packed"]
Sides = dict[str, int | None]  # short side in pixels of the copy of each role; None: none


@dataclass(frozen=True)
class Decided:
    """Which copies a run has. It decides what the models see, so that a resumed run has the same.

    Attributes:
        raw: copies with decoded pixels.
        packed: packed stores.
    """

    raw: Sides
    packed: Sides

    @classmethod
    def of(cls, record: dict[str, Any]) -> Decided | None:
        """Read what `record` has written; None where the run begins. Runs of older versions have no packed store."""
        if "decoded" not in record:
            return None
        return cls(record["decoded"], record.get("packed", {}))

    def record(self) -> dict[str, Any]:
        """JSON values for the run's record of its splits."""
        return {"decoded": self.raw, "packed": self.packed}


def decode_once(
    splits: Splits,
    specs: Sequence[InputSpec],
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    runtime: Runtime,
    before: Decided | None = None,
) -> tuple[Splits, Decided]:
    """The splits with images read from copies, made where they are missing. Every process has to call it.

    The copies of all runs that share a directory together stay below ``data.cache_mb``. With ``data.cache`` true, what
    does not fit as decoded pixels is kept in a packed store, and what does not fit there either is read from its files,
    in every epoch. The first process decodes pixels; all processes fill a packed store.

    Args:
        splits: of the run.
        specs: inputs of all models.
        recipe: of the run.
        directory: holds the copies of any number of runs.
        progress: shows each copy's size before it is made.
        runtime: the processes.
        before: what was decided when the run began, if it is resumed.

    Raises:
        TutelageError: a copy that the resumed run had cannot be made again.
    """
    side = cache_side(specs, recipe.view)
    decided = Decided({}, {})
    copies: dict[str, Any] = {}
    for role in ROLES:
        subset = getattr(splits, role)
        decided.raw[role] = decided.packed[role] = None
        if subset is None or not recipe.data.cache or subset.images.decoded:
            continue
        kinds: tuple[Kind, ...] = ("raw", "packed") if recipe.data.cache is True else (recipe.data.cache,)
        wanted: int | None = side
        if before is not None:
            kinds = ("raw",) if before.raw.get(role) else ("packed",)
            wanted = before.raw.get(role) or before.packed.get(role)
        if wanted is None:
            continue
        copier = _Copier(subset, wanted, recipe, directory, progress, runtime)
        copy = copier.copy(kinds)
        if copy is None:
            if before is None:
                continue
            raise TutelageError(
                f"{directory}: the run began with decoded images, which cannot be stored there now; free some "
                "space or raise data.cache_mb in its recipe.yaml"
            )
        (decided.raw if isinstance(copy.images, CachedImages) else decided.packed)[role] = wanted
        copies[role] = copy
    return replace(splits, **copies), decided


@dataclass
class _Copier:
    """Makes the copy of one subset."""

    subset: Subset
    side: int
    recipe: Recipe
    directory: Path
    progress: Progress
    runtime: Runtime

    def copy(self, kinds: tuple[Kind, ...]) -> Subset | None:
        """The subset read from a copy of the first kind that fits; None where none does."""
        reasons: list[str] = []
        for kind in kinds:
            copy = self._raw(reasons) if kind == "raw" else self._packed(reasons)
            if copy is not None:
                return copy
        for reason in reasons:
            log.warning("%s", reason)
        return None

    def _raw(self, reasons: list[str]) -> Subset | None:
        def made() -> Subset:
            with _Counted(self.progress, CHUNK) as counted:
                return cached(
                    self.subset,
                    self.side,
                    self.directory,
                    self._room(),
                    progress=counted,
                    say=self.progress.say,
                    refuse=reasons.append,
                )

        own: list[Subset] = []

        def first() -> bool:
            own.append(made())
            return isinstance(own[0].images, CachedImages)

        if not self.runtime.on_main(first):
            return None
        return own[0] if own else made()  # the other processes open what the first one has made

    def _packed(self, reasons: list[str]) -> Subset | None:
        images = self.subset.images
        if (
            images.side is not None and images.side <= self.side
        ):  # a streamed source: its parts are such a store
            images = same(images)
            images.small = True
            return replace(self.subset, images=images)
        place = store_place(self.subset.images, self.side, self.directory)
        limit = self.runtime.on_main(lambda: self._limit(place, reasons))
        if limit is None:
            return None
        try:
            with _Counted(self.progress, packing.CHUNK) as counted:
                packing.fill(
                    self.subset,
                    self.side,
                    place,
                    limit,
                    progress=counted,
                    rank=self.runtime.rank,
                    world_size=self.runtime.world_size,
                )
        except (OSError, TutelageError) as error:
            reasons.append(f"{place}: the packed store is not complete ({error})")
        self.runtime.wait()
        copy = opened(self.subset, self.side, place)
        if any(self.runtime.any(copy is None)):
            return None
        return copy

    def _limit(self, place: Path, reasons: list[str]) -> float | None:
        """Largest size of the store in MB; None where it does not fit. The estimated size is reported."""
        missing = read_store(place, self.side).missing(self.subset.indices)
        if not len(missing):
            return float("inf")
        more = estimated_mb(replace(self.subset, indices=missing), self.side)
        self.directory.mkdir(parents=True, exist_ok=True)
        free, room = shutil.disk_usage(self.directory).free / 1e6, self._room()
        if more > min(free, room):
            bound = (
                f"data.cache_mb is {self.recipe.data.cache_mb:g}"
                if more > room
                else f"{free:.0f} MB are free"
            )
            reasons.append(f"no packed store: {len(missing)} images would take {more:.0f} MB, {bound}")
            return None
        self.progress.say(f"packed store: {len(missing):,} images, about {more:.0f} MB in {place}")
        return room + _megabytes(place)

    def _room(self) -> float:
        return self.recipe.data.cache_mb - _megabytes(self.directory)


class _Counted:
    """Shows how many images are done, from the first one on."""

    def __init__(self, progress: Progress, chunk: int) -> None:
        self._progress, self._chunk, self._done = progress, chunk, 0

    def __enter__(self) -> _Counted:
        return self

    def __call__(self, images: int, count: int) -> None:
        if not self._done:
            self._progress.begin("images", -(-count // self._chunk))
        self._progress.step({}, images - self._done)
        self._done = images

    def __exit__(self, *error: object) -> None:
        if self._done:
            self._progress.end()


def _megabytes(directory: Path) -> float:
    """Size of all files below a directory. Files that are deleted meanwhile do not count."""
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total / 1e6
