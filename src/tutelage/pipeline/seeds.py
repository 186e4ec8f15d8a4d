"""Runs of the same recipe with several seeds, which show how much of a difference is due to chance."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from tutelage.core.errors import Incomplete
from tutelage.core.files import read_json, write_json
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.core.records import read_predictions
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.runtime import Runtime
from tutelage.evaluation.paired import pooled
from tutelage.evaluation.roles import Role
from tutelage.evaluation.table import Row
from tutelage.pipeline.run import describe, distill


def distill_seeds(recipe: Recipe, run: Run, seeds: int, progress: Progress) -> dict[str, Any]:
    """Distil once for each seed in ``run/seed-K``, and write ``seeds.json``: mean, sd and pooled intervals.

    Only the training seed changes. The split of the data stays the same, so that all seeds are evaluated on the same
    images. Whatever does not depend on the seed (decoded images, pre-flight, speeds) is computed once, and finished
    seeds are not trained again.

    Raises:
        TutelageError: bad input, or the pre-flight found nothing to teach.
        Incomplete: a seed's student is kept, but something after its training failed.
        WeakTeacher: in the first seed the teacher is not shown to be better than the control. Later seeds go on.
        Interrupted: the run was asked to stop; the same call resumes it.
    """
    runtime = Runtime.start()
    runs = []
    incomplete: Incomplete | None = None
    for number in range(seeds):
        train = recipe.train.model_copy(update={"seed": recipe.train.seed + number})
        seeded = recipe.model_copy(update={"train": train})
        one = Run(run.path / f"seed-{train.seed}")
        progress.say(f"seed {train.seed} ({number + 1} of {seeds})")
        if not runtime.on_main(partial(_done, one, seeded, run)):
            try:
                # the first seed decides whether the teacher has anything to teach: a later one would waste the others
                distill(seeded, one, progress, memo=run.cache, stop_at_weak_teacher=number == 0)
            except Incomplete as error:
                incomplete = error
                progress.say(str(error))
        runs.append(one)

    if incomplete is not None and not all(one.comparison.exists() for one in runs):
        raise incomplete

    def finish() -> dict[str, Any]:
        result = summary(runs)
        write_json(run.seeds, result)
        if incomplete is None:
            write_digests(run)
            shutil.rmtree(run.cache, ignore_errors=True)
        return result

    result = runtime.on_main(finish)
    if incomplete is not None:
        raise incomplete
    return result


def _done(one: Run, recipe: Recipe, whole: Run) -> bool:
    """Whether a seed's run has ended; a run that has not begun gets its recipe and the versions of the whole."""
    describe(one, recipe, read_json(whole.versions))
    return one.digests.exists() and one.report.exists()


def summary(runs: list[Run]) -> dict[str, Any]:
    """Compute the mean and sd of each role's top-1, and the pooled differences of the student to the other models.

    Args:
        runs: finished runs with the same test images.
    """
    tables = [read_json(run.comparison) for run in runs]
    if tables[0]["rows"][0]["top1"] is None:
        return _without_labels(runs, tables)
    correct = [_correct(run.predictions) for run in runs]
    # only some of the runs may have the student at another resolution
    roles = [row["role"] for row in tables[0]["rows"] if all(row["role"] in found for found in correct)]
    top1 = {
        role: [next(row["top1"] for row in table["rows"] if row["role"] == role) for table in tables]
        for role in roles
    }
    names = {row["role"]: Row.from_dict(row).name for row in tables[0]["rows"]}
    pairs = []
    for role in roles:
        if role != Role.DISTILLED:
            new, old = (np.stack([found[name] for found in correct]) for name in (Role.DISTILLED, role))
            pairs.append({"new": str(Role.DISTILLED), "old": role, **pooled(new, old)})
    return {
        "runs": [run.path.name for run in runs],
        "top1": {
            role: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "each": values}
            for role, values in top1.items()
        },
        "names": {role: names[role] for role in roles},
        "pairs": pairs,
        "n": tables[0]["test"]["n"],
        "sentence": _sentence(pairs, names, len(runs)),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """Show what `summary` gave on a terminal: a line for each model, and the student's difference to it."""
    if not result["pairs"]:
        return [str(result["sentence"])]
    pairs = {pair["old"]: pair for pair in result["pairs"]}
    width = max(map(len, result["names"].values()))
    shown = [f"Over {len(result['runs'])} seeds, top-1 on {result['n']:,} test images in %, mean and sd:"]
    for role, found in result["top1"].items():
        spread = "" if found["sd"] is None else f" ± {found['sd']:.2f}"
        line = f"  {result['names'][role]:<{width}}  {found['mean']:6.2f}{spread}"
        if pair := pairs.get(role):
            line += f"  student {pair['difference']:+.2f} ({pair['low']:+.2f} to {pair['high']:+.2f})"
        shown.append(line)
    return [*shown, "(in brackets: 95% intervals, paired over images, with the seeds pooled)"]


def _without_labels(runs: list[Run], tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the mean agreement of the student with the teacher, where the test images have no labels."""
    student = [next(row for row in table["rows"] if row["role"] == Role.DISTILLED) for table in tables]
    agreement, close = ([row[name] for row in student] for name in ("agreement", "fidelity"))
    return {
        "runs": [run.path.name for run in runs],
        "agreement": agreement,
        "fidelity": close,
        "pairs": [],
        "n": tables[0]["test"]["n"],
        "sentence": (
            f"No labels: nothing is claimed about accuracy. Over {len(runs)} seeds the kept student agrees with the "
            f"teacher on {mean(agreement):.2f}% of the test images, with a mean KL of {mean(close):.3f} nats."
        ),
    }


def _correct(path: Path) -> dict[str, np.ndarray]:
    """Return for each role whether its top class is the label, (N,) bool over the labelled images."""
    predictions = read_predictions(path)
    labelled = predictions.labels >= 0
    return {role: predictions.right(role)[labelled] for role in predictions.roles}


def _sentence(pairs: list[dict[str, Any]], names: Mapping[str, str], seeds: int) -> str:
    parts = [
        f"{pair['difference']:+.2f} points top-1 against the {names[pair['old']]} "
        f"(95% interval {pair['low']:+.2f} to {pair['high']:+.2f})"
        for pair in pairs
    ]
    return f"Over {seeds} seeds the kept student has {'; '.join(parts)}."
