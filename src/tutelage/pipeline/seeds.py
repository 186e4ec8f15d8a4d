"""The same recipe with several seeds: what part of a difference is luck."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from tutelage.core.files import read_json, write_json, write_text
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe, dump_recipe
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.runtime import Runtime
from tutelage.evaluation.paired import pooled
from tutelage.pipeline.run import distill


def distill_seeds(recipe: Recipe, run: Run, seeds: int, progress: Progress) -> dict[str, Any]:
    """Distil once a seed in ``run/seed-K``, and write ``seeds.json``: mean, sd and pooled intervals.

    Only the training seed changes; the split of the data stays, so that all seeds report on the same images.
    What does not depend on it (decoded images, pre-flight, speeds) is made once. Runs that are finished are not
    done again.
    """
    runs = []
    writes = Runtime.start().is_main
    for number in range(seeds):
        train = recipe.train.model_copy(update={"seed": recipe.train.seed + number})
        one = Run(run.path / f"seed-{train.seed}")
        if writes and not one.versions.exists():
            write_text(one.recipe, dump_recipe(recipe.model_copy(update={"train": train})))
            write_json(one.versions, read_json(run.versions))
        progress.say(f"seed {train.seed} ({number + 1} of {seeds})")
        if not one.digests.exists():
            distill(recipe.model_copy(update={"train": train}), one, progress, memo=run.cache)
        runs.append(one)
    result = summary(runs)
    if writes:
        write_json(run.seeds, result)
        write_digests(run)
        shutil.rmtree(run.cache, ignore_errors=True)
    return result


def summary(runs: list[Run]) -> dict[str, Any]:
    """Mean and standard deviation of each role's top-1, and the pooled difference to each opponent.

    Args:
        runs: finished, with the same test images.
    """
    tables = [read_json(run.comparison) for run in runs]
    answers = [_right(run.predictions) for run in runs]
    # a student at its best resolution may be in some of the runs only
    roles = [row["role"] for row in tables[0]["rows"] if all(row["role"] in answer for answer in answers)]
    top1 = {role: [_of(table, role)["top1"] for table in tables] for role in roles}
    pairs = []
    for role in roles:
        if role != "distilled":
            found = pooled(np.stack([a["distilled"] for a in answers]), np.stack([a[role] for a in answers]))
            pairs.append({"new": "distilled", "old": role, **found})
    return {
        "runs": [run.path.name for run in runs],
        "top1": {
            role: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "each": values}
            for role, values in top1.items()
        },
        "pairs": pairs,
        "n": tables[0]["test"]["n"],
        "sentence": _sentence(pairs, len(runs)),
    }


def _of(table: dict[str, Any], role: str) -> dict[str, Any]:
    return next(row for row in table["rows"] if row["role"] == role)


def _right(path: Path) -> dict[str, np.ndarray]:
    """(N,) bool by role: whether the top class is the label."""
    with np.load(path, allow_pickle=False) as arrays:
        labels = arrays["labels"]
        return {
            name.removesuffix("_top5"): (arrays[name][:, 0] == labels)[labels >= 0]
            for name in arrays.files
            if name.endswith("_top5")
        }


def _sentence(pairs: list[dict[str, Any]], seeds: int) -> str:
    parts = [
        f"{pair['difference']:+.2f} points top-1 against the {pair['old']} "
        f"(95% interval {pair['low']:+.2f} to {pair['high']:+.2f})"
        for pair in pairs
    ]
    return f"Over {seeds} seeds the kept student has {'; '.join(parts)}."
