"""The finished trials of a study: their figures, and paired differences between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tutelage.core.files import entry
from tutelage.core.recipe import load_recipe
from tutelage.core.records import read_predictions
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.roles import Role

SEARCHED = "search"  # name of the trials that are not variants
Reached = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Entry:
    """A trial that has begun.

    Attributes:
        number: of the trial.
        name: of the trial: its variant's, and its seed where that is not the first one.
        overrides: settings that differ from the base, by key.
        run: its run directory.
        state: `done` where it has its figures.
        reason: why it failed; None where it did not.
        of: name of its variant.
    """

    number: int
    name: str
    overrides: Mapping[str, Any]
    run: Run
    state: Reached
    reason: str | None = None
    of: str = ""

    @property
    def variant(self) -> str:
        """The name of its variant, which trials with other seeds share."""
        return self.of or self.name


@dataclass(frozen=True, eq=False)  # compared by identity, as a key of computed pairs
class TopClass:
    """The most probable class of each test image, by model.

    Attributes:
        ids: (N,) ids of the images.
        labels: (N,) int64, -1 where an image has no label.
        by_role: (N,) classes of each model, by its role.
    """

    ids: np.ndarray
    labels: np.ndarray
    by_role: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """A finished trial with its figures, and its differences from its start, its control and the best trial.

    Attributes:
        entry: the trial.
        val: figures of the kept student on val.
        kept: name of the kept candidate.
        test: top-1 in % and NLL of each model on test, by its role.
        from_scratch: whether the student began with random weights.
        start_is_probe: whether it began with a linear probe as its head.
        top_class: of each test image.
        seed: of its training.
        start, control, best: the student compared with these; None where there is nothing to compare with.
        named: compared with the variant that all are held against; None where none is named.
    """

    entry: Entry
    val: dict[str, float]
    kept: str
    test: Mapping[str, dict[str, float]]
    from_scratch: bool
    start_is_probe: bool
    top_class: TopClass
    seed: int = 0
    start: Paired | None = None
    control: Paired | None = None
    best: Paired | None = None
    named: Paired | None = None

    @property
    def test_top1(self) -> float:
        """The student's top-1 on test, in %."""
        return self.test[Role.DISTILLED]["top1"]


class Figures:
    """The figures of finished trials and their paired differences, each read or computed once.

    A study ranks all trials again after each of them, so this saves reading all files again. A trial whose files have
    changed since (such as a failed trial that was finished by hand) is read again.
    """

    def __init__(self) -> None:
        self._trials: dict[int, tuple[object, Ranked]] = {}
        self._pairs: dict[tuple[TopClass, TopClass, str], Paired] = {}

    def read(self, one: Entry) -> Ranked:
        """Read a finished trial, without comparisons."""
        files = (one.run.candidates, one.run.comparison, one.run.predictions)
        stamp = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]
        known, found = self._trials.get(one.number, (None, None))
        if found is None or known != stamp:
            found = self._read(one)
            self._trials[one.number] = stamp, found
        return replace(found, entry=one)

    def _read(self, one: Entry) -> Ranked:
        kept = kept_candidate(one.run)
        rows = {row["role"]: row for row in entry(one.run.comparison, "rows")}
        recipe = load_recipe(one.run.recipe)
        val = {key: kept["val"][key] for key in ("top1", "nll")}
        predictions = read_predictions(one.run.predictions)
        # a copy lets the classes after the first be freed
        first = {role: top.first.copy() for role, top in predictions.roles.items()}
        ids = next(  # trials have the same test images, whose ids are kept once
            (
                r.top_class.ids
                for _, r in self._trials.values()
                if np.array_equal(r.top_class.ids, predictions.ids)
            ),
            predictions.ids,
        )
        top_class = TopClass(ids, predictions.labels, first)
        test = {role: {key: row[key] for key in ("top1", "nll")} for role, row in rows.items()}
        is_probe = bool(rows.get(Role.START, {}).get("is_probe"))
        seed = recipe.train.seed
        return Ranked(one, val, kept["name"], test, recipe.random_start, is_probe, top_class, seed)

    def pair(self, new: Ranked, old: Ranked, role: str) -> Paired | None:
        """Compare the distilled student with a trial's model; None without that model or with other images."""
        ours, theirs = new.top_class, old.top_class
        same = ours.ids is theirs.ids or np.array_equal(ours.ids, theirs.ids)
        if role not in theirs.by_role or not same:
            return None
        key = (ours, theirs, role)
        if key not in self._pairs:
            student = ours.by_role[Role.DISTILLED]
            self._pairs[key] = paired(student, theirs.by_role[role], ours.labels)
        return self._pairs[key]


def kept_candidate(run: Run) -> dict[str, Any]:
    """Read the record of the kept student in candidates.json."""
    found: dict[str, Any] = next(c for c in entry(run.candidates, "candidates") if c["kept"])
    return found
