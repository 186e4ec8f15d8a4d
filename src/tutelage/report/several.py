"""The page of several runs: which is the best on the validation images, its figures on test, and how they differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.core.recipe_tree import flat
from tutelage.evaluation.quality import merit
from tutelage.evaluation.verdict import OPPONENTS
from tutelage.report import plots
from tutelage.report.headline import headline, sentence
from tutelage.report.page import Section, embed, missing, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.tables import ABSENT, Cell, Sheet, duration, number, short_model, signed, value

# roles whose models runs on the same images mostly have in common
SHARED = ("teacher", "teacher-probe", "start", "probe")
UNTOLD = ("name", "track", "export", "targets.directory")  # keys that change nothing in what is compared


@dataclass(frozen=True)
class Group:
    """Runs on the same validation and test images, whose figures can be compared.

    Attributes:
        runs: the best on the validation images first; in the given order where they are seeds of one recipe.
        data: their test images in words.
        best: the first of several, where it has kept a student.
    """

    runs: Sequence[RunRecords]
    data: str
    best: RunRecords | None


def several_sections(
    runs: Sequence[RunRecords], title: str, folder: Path, seeds: Mapping[str, Any] | None = None
) -> list[Section]:
    """Make every section of the page.

    Args:
        runs: in any order; the page puts the best on val first, of those on the same images.
        title: of the page.
        folder: where the page will lie; links to the runs' own pages start there.
        seeds: of ``seeds.json``, where the runs are one recipe's seeds.
    """
    names = run_names(runs)
    groups = grouped(runs, ranked=not seeds)
    return [
        _head(groups, names, title, seeds),
        _table(groups, names, folder),
        _differences(groups, names, seeds),
        _tradeoff(groups, names),
        _curves(groups, names),
        _settings(groups, names),
    ]


def grouped(runs: Sequence[RunRecords], ranked: bool = True) -> list[Group]:
    """Put runs on the same images together, in the order of the first of each group; rank within them."""
    found: list[list[RunRecords]] = []
    for records in runs:
        home = next((group for group in found if same_images([*group, records])), None)
        if home is None:
            found.append([records])
        else:
            home.append(records)
    words = [_test_images(group[0]) for group in found]
    groups = []
    for group, data in zip(found, words, strict=True):
        order = sorted(group, key=_rank) if ranked else group
        best = order[0] if ranked and order[0].kept and (len(group) > 1 or len(found) == 1) else None
        groups.append(Group(order, data if words.count(data) == 1 else _with_digests(data, group), best))
    return groups


def _with_digests(data: str, group: Sequence[RunRecords]) -> str:
    """Tell apart images of one source that were divided in another way."""
    found = {
        part: next((digest for records in group if (digest := _digest(records, part))), None)
        for part in ("test", "val")
    }
    known = [f"{part} {digest[:8]}" for part, digest in found.items() if digest]
    return f"{data} ({', '.join(known)})" if known else data


def same_images(runs: Sequence[RunRecords]) -> bool:
    """Whether all runs have the same validation and test images, so that their figures can be compared.

    What a run has not recorded yet is taken to be the same.
    """
    digests = {part: [_digest(records, part) for records in runs] for part in ("val", "test")}
    if any(len({digest for digest in found if digest}) > 1 for found in digests.values()):
        return False
    if all(digests["test"]):
        return True
    tests = [test for records in runs if (test := (records.comparison or {}).get("test"))]
    return len({(test.get("source"), test.get("n")) for test in tests}) < 2


def _digest(records: RunRecords, part: str) -> str | None:
    """Look up the digest of the images and labels of a part of the data."""
    parts = (records.splits or {}).get("parts") or {part: (records.comparison or {}).get(part)}
    return (parts.get(part) or {}).get("digest")


def run_names(runs: Sequence[RunRecords]) -> dict[Path, str]:
    """Give each run a short name: that of its directory, with as many parents as it takes to be unique."""
    paths = {records.run.path: records.run.path.resolve().parts for records in runs}
    depth = 1
    while depth < 8 and len({parts[-depth:] for parts in paths.values()}) < len(paths):
        depth += 1
    return {path: "/".join(parts[-depth:]) for path, parts in paths.items()}


def _rank(records: RunRecords) -> tuple[bool, float]:
    """Sort key: the best on the validation images by the recipe's metric comes first, an unfinished run last."""
    if records.kept is None:
        return True, 0.0
    return False, -merit(records.kept["val"], records.metric)[0]


def _val(records: RunRecords, metric: str) -> float | None:
    return records.kept["val"][metric] if records.kept else None


def _head(
    groups: Sequence[Group], names: Mapping[Path, str], title: str, seeds: Mapping[str, Any] | None
) -> Section:
    runs = [records for group in groups for records in group.runs]
    outcomes: dict[str, list[str]] = {}
    for records in runs:
        for comparison in headline(records)[:1]:
            kind = comparison.outcome if comparison.outcome in {"better", "worse"} else "same"
            outcomes.setdefault(comparison.against, []).append(kind)
    return render_section(
        "verdict",
        "Verdict",
        "several_verdict.html.j2",
        heading=title,
        counts={
            OPPONENTS.get(role, role): {kind: found.count(kind) for kind in ("better", "same", "worse")}
            for role, found in outcomes.items()
        },
        total=len(runs),
        seeds=seeds,
        unfinished=[(names[r.run.path], r.reached) for r in runs if not r.finished],
        best=[
            (names[group.best.run.path], sentence(group.best), group.data) for group in groups if group.best
        ],
        images=[(group.data, [names[r.run.path] for r in group.runs]) for group in groups],
        damaged=[line for records in runs for line in records.damaged],
    )


def _test_images(records: RunRecords) -> str:
    """Describe the images that a run was evaluated on: ``1,797 test images of digits``."""
    recorded = ((records.splits or {}).get("parts") or {}).get("test") or {}
    test = recorded | ((records.comparison or {}).get("test") or {})
    source = test.get("source") or (records.recipe.get("data") or {}).get("train", "?")
    size = test.get("n") or test.get("size")
    return f"{size:,} test images of {source}" if size else f"test images of {source}"


def _table(groups: Sequence[Group], names: Mapping[Path, str], folder: Path) -> Section:
    columns = [
        "Run",
        "Verdict",
        "Kept weights",
        "Val top-1, %",
        "Val NLL",
        "Compared with start, points",
        "Compared with control, points",
    ]
    columns += ["Test top-1, %", "Linear probe, %", "Start, %", "Teacher, %", "Training time"]
    sheets = {}
    for group in groups:
        lines = [_line(records, names[records.run.path], folder) for records in group.runs]
        strong = frozenset({0} if group.best else ())
        sheets[group.data] = Sheet(columns, lines, words=frozenset({1, 2}), strong=strong)
    return render_section("runs", "All runs", "several_runs.html.j2", sheets=sheets)


def _line(records: RunRecords, name: str, folder: Path) -> list[Cell]:
    rows = {row["role"]: row for row in records.rows}
    report = records.run.report.resolve()
    link = Path(os.path.relpath(report, folder.resolve())).as_posix() if report.exists() else ""
    probe = next(
        (row for row in records.rows if row.get("is_probe")), None
    )  # the student's, else the teacher's
    comparisons = headline(records)
    state = comparisons[0].words if comparisons else "no labels" if records.verdict else "unfinished"
    return [
        Cell(name, name, link=link),
        Cell(state, state),
        Cell((records.kept or {}).get("name", ABSENT)),
        number(_val(records, "top1"), 2),
        number(_val(records, "nll"), 3),
        _difference(records, "start"),
        _difference(records, "control"),
        *(number((row or {}).get("top1"), 2) for row in (rows.get("distilled"), probe, rows.get("start"))),
        number((rows.get("teacher") or {}).get("top1"), 2),
        Cell(duration(records.seconds), records.seconds),
    ]


def _difference(records: RunRecords, old: str) -> Cell:
    pair = records.pair(old)
    if pair is None:
        return Cell(ABSENT)
    interval = f"[{signed(pair['low'])}, {signed(pair['high'])}]"
    return Cell(signed(pair["difference"]), pair["difference"], interval)


def _differences(
    groups: Sequence[Group], names: Mapping[Path, str], seeds: Mapping[str, Any] | None
) -> Section:
    id, title = "differences", "Differences on the test images"
    figures = []
    for group in groups:
        for old in ("start", "control"):
            shown = [records for records in group.runs if old != "start" or not records.random_start]
            pooled = (seeds or {}).get("pairs", []) if shown else []
            found = [(pair, "all seeds") for pair in pooled if pair["old"] == old]
            found += [(pair, names[r.run.path]) for r in shown if (pair := r.pair(old))]
            if found:
                figure = embed(plots.intervals([p for p, _ in found], [n for _, n in found]))
                figures.append((old, group.data, figure))
    if not figures:
        return missing(id, title, "No run has been evaluated on its test images yet.")
    left_out = [
        names[r.run.path] for group in groups for r in group.runs if r.random_start and r.pair("start")
    ]
    return render_section(
        id,
        title,
        "several_differences.html.j2",
        figures=figures,
        together=len(groups) == 1,
        ranked=any(group.best for group in groups),
        left_out=left_out,
    )


def _tradeoff(groups: Sequence[Group], names: Mapping[Path, str]) -> Section:
    """Show every distilled student and deployed file, and each teacher and start once; only runs on the same images."""
    id, title = "tradeoff", "Size, speed and accuracy"
    together = [group for group in groups if len(group.runs) > 1 or len(groups) == 1]
    if not together:
        return missing(
            id, title, "The runs have different images, so one plot cannot compare their accuracy."
        )
    shown = []
    for group in together:
        rows = _models(group, names)
        for cost in ("latency_ms", "size_mb"):
            if figure := plots.tradeoff(list(rows.values()), cost, list(rows)):
                shown.append((cost, "" if len(groups) == 1 else group.data, embed(figure)))
    if not shown:
        return missing(id, title, "Fewer than two models have been evaluated yet.")
    without_start = any(r.random_start and r.rows for group in together for r in group.runs)
    return render_section(id, title, "tradeoff.html.j2", figures=shown, without_start=without_start)


def _models(group: Group, names: Mapping[Path, str]) -> dict[str, Mapping[str, Any]]:
    """The rows of all models of a group by their names; those that the runs have in common, once."""
    rows: dict[str, Mapping[str, Any]] = {}
    for records in group.runs:
        for row in records.rows:
            role = row["role"]
            whose = short_model(row["model"]) if role in SHARED else names[records.run.path]
            if role != "control" and not (role == "start" and records.random_start):
                rows.setdefault(whose if role == "distilled" else f"{whose}, {role}", row)
    return rows


def _curves(groups: Sequence[Group], names: Mapping[Path, str]) -> Section:
    id, title = "training", "Training"
    figures = {}
    strong = False
    for group in groups:
        rows = {names[r.run.path]: r.stage("distill") for r in group.runs if r.stage("distill")}
        if rows:
            figures[group.data] = embed(
                plots.val_curves(rows, names[group.best.run.path] if group.best else None)
            )
            strong = strong or (bool(group.best) and len(rows) > plots.FEW)
    if not figures:
        return missing(id, title, "No run has finished an epoch of the distillation yet.")
    return render_section(id, title, "several_training.html.j2", figures=figures, best=strong)


def _settings(groups: Sequence[Group], names: Mapping[Path, str]) -> Section:
    """Show the keys that differ: of the recipes, and of what the runs chose where these say ``auto``."""
    id, title = "settings", "Differences between the recipes"
    runs = [records for group in groups for records in group.runs]
    recipes = {names[r.run.path]: flat(r.recipe) | _chosen(r) for r in runs}
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    told = [key for key in keys if not key.startswith(UNTOLD)]
    differing = [k for k in told if len({json.dumps(r.get(k), sort_keys=True) for r in recipes.values()}) > 1]
    if not differing:
        return missing(id, title, "The recipes are the same.")
    together = len(groups) == 1  # else a column of figures would rank what cannot be compared
    lines = []
    for records in runs:
        name = names[records.run.path]
        figures = [number(_val(records, "top1"), 2), _difference(records, "start")] if together else []
        lines.append(
            [
                Cell(name, name),
                *figures,
                *(_setting(recipes[name].get(key, ABSENT), key in records.choices) for key in differing),
            ]
        )
    heads = ["Val top-1, %", "Compared with start, points"] if together else []
    sheet = Sheet(["Run", *heads, *differing], lines)
    return render_section(id, title, "several_settings.html.j2", sheet=sheet)


def _chosen(records: RunRecords) -> dict[str, Any]:
    return {key: choice["value"] for key, choice in records.choices.items()}


def _setting(setting: Any, chosen: bool) -> Cell:
    sortable = isinstance(setting, int | float) and not isinstance(setting, bool)
    return Cell(value(setting), setting if sortable else value(setting), "auto" if chosen else "")
