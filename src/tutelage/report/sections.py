"""What the page of one run says, in the order of a reader's questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import flat
from tutelage.data.input_spec import InputSpec
from tutelage.report import plots, tables
from tutelage.report.page import Section, embed, missing, render_section
from tutelage.report.predictions import (
    Predictions,
    agreement,
    class_changes,
    confusion_matrix,
    confusions,
    greatest_changes,
    hardest_classes,
    reliability,
)
from tutelage.report.run_records import RunRecords
from tutelage.report.style import NAMES, role_name

CARDS = 12  # images of each kind
MATRIX_CLASSES = 30  # more cannot be read
CONFUSIONS = 12
FITS = ("teacher-fit", "head-fit")
OUTCOMES = {
    "better": ("better", "Better than its start"),
    "worse": ("worse", "Worse than its start"),
    "no different": ("same", "No different from its start"),
}


@dataclass(frozen=True)
class Answer:
    """A model's first class for one image."""

    role: str
    called: str
    percent: float
    right: bool


@dataclass(frozen=True)
class Card:
    """One image that changed."""

    picture: Any
    id: str
    truth: str
    answers: Sequence[Answer]


def run_sections(records: RunRecords) -> list[Section]:
    """Every section of the page; those whose data are missing say how far the run got."""
    return [
        _verdict(records),
        _comparison(records),
        _tradeoff(records),
        _training(records),
        _choice(records),
        _teacher(records),
        _classes(records),
        _images(records),
        _views(records),
        _checks(records),
        _record(records),
    ]


def _verdict(records: RunRecords) -> Section:
    verdict = records.verdict
    outcome, heading = OUTCOMES.get(verdict.get("outcome", ""), ("", ""))
    return render_section(
        "verdict",
        "Verdict",
        "verdict.html.j2",
        records=records,
        who=_who(records),
        verdict=verdict,
        outcome=outcome,
        heading=heading,
        figure=embed(plots.intervals(verdict["pairs"])) if verdict.get("pairs") else None,
        pairs=tables.pairs(records),
    )


def _who(records: RunRecords) -> str:
    recipe = records.recipe
    models = ((recipe.get(who) or {}).get("model", "?") for who in ("student", "teacher"))
    student, teacher = map(tables.short_model, models)
    return f"{student}, taught by {teacher}, on {(recipe.get('data') or {}).get('train', '?')}"


def _comparison(records: RunRecords) -> Section:
    id, title = "comparison", "Every model compared"
    if not records.rows:
        return missing(id, title, f"Nothing has been measured on the test images yet: {records.reached}.")
    return render_section(
        id,
        title,
        "comparison.html.j2",
        sheet=tables.comparison(records.rows),
        caption=_measured_on(records),
        notes=tables.footnotes(records.rows),
    )


def _measured_on(records: RunRecords) -> str:
    row = records.rows[0]
    conditions = row.get("conditions") or {}
    words = {"device": "on {}", "threads": "threads: {}", "batch_size": "images/s in batches of {}"}
    predictions = [f"Measured on {row['n']:,} test images" if row.get("n") else "Measured on the test images"]
    predictions += [
        pattern.format(conditions[key]) for key, pattern in words.items() if conditions.get(key) is not None
    ]
    brackets = "; in brackets, its paired 95% interval" if any(r.get("paired") for r in records.rows) else ""
    spread = ", below a latency its 10th and 90th percentile"
    return (
        f"{', '.join(predictions)}. Below a figure stands its change against the first row{brackets}{spread}."
    )


def _tradeoff(records: RunRecords) -> Section:
    id, title = "tradeoff", "Size, speed and accuracy"
    figures = {cost: plots.tradeoff(records.rows, cost) for cost in ("latency_ms", "size_mb")}
    shown = {cost: embed(figure) for cost, figure in figures.items() if figure}
    if not shown:
        return missing(id, title, f"Fewer than two models have been measured: {records.reached}.")
    return render_section(id, title, "tradeoff.html.j2", figures=shown)


# --- training


def _training(records: RunRecords) -> Section:
    id, title = "training", "Training"
    trained = records.stage("control") + records.stage("distill")
    fits = [row for row in records.metrics if row["stage"].startswith(FITS)]
    if not trained and not fits:
        return missing(id, title, f"No epoch has ended yet: {records.reached}.")
    levels = _levels(records) if trained else {}
    kept = _kept_at(records)
    figures = plots.curves(trained, records.findings, kept, levels) if trained else {}
    fitted = plots.curves(fits)["accuracy"] if fits else None
    return render_section(
        id,
        title,
        "training.html.j2",
        records=records,
        accuracy=embed(figures["accuracy"]) if figures else None,
        panels={name: embed(figures[name].update_layout(showlegend=False)) for name in list(figures)[1:]},
        fitted=embed(fitted) if fitted else None,
        summary=_last_epoch(records),
        kept=kept,
        findings=[_finding(f) for f in records.findings],
        sheet=tables.epochs(fits + trained),
    )


def _levels(records: RunRecords) -> dict[str, float]:
    """Val top-1 of teacher and start, from the pre-flight."""
    who = {"teacher": "teacher", "start": "student"}
    preflight = records.preflight or {}
    return {role: preflight[key]["val"]["top1"] for role, key in who.items() if key in preflight}


def _kept_at(records: RunRecords) -> dict[str, Any] | None:
    """The kept candidate with the epoch that its weights come from; a soup comes from several."""
    kept, rows = records.kept, records.stage("distill")
    if not kept or not rows:
        return None
    best = max(rows, key=lambda row: row["val"]["top1"])["epoch"]
    epochs = {"start": 0, "best": best, "last": rows[-1]["epoch"], "ema": rows[-1]["epoch"]}
    return {**kept, "epoch": epochs.get(kept["source"])}


def _last_epoch(records: RunRecords) -> str:
    predictions = []
    for stage, name in (("distill", "The distilled student"), ("control", "The labels-only control")):
        rows = records.stage(stage)
        if rows:
            last = rows[-1]
            predictions.append(
                f"{name} ended epoch {last['epoch']} of {last['epochs']} with val top-1 {last['val']['top1']:.2f}%."
            )
    return " ".join(predictions)


def _finding(finding: dict[str, Any]) -> dict[str, Any]:
    evidence = flat(finding.get("evidence") or {})
    shown = [f"{key.replace('_', ' ')} {_brief(value)}" for key, value in evidence.items()]
    return {**finding, "evidence": ", ".join(shown)}


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_brief(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return str(value)


def _choice(records: RunRecords) -> Section:
    id, title = "choice", "What was kept"
    options = (records.candidates or {}).get("candidates") or []
    if not options:
        return missing(id, title, f"No candidate has been weighed yet: {records.reached}.")
    metric = (records.candidates or {}).get("metric", "top1")
    return render_section(
        id,
        title,
        "choice.html.j2",
        figure=embed(plots.candidates(options, metric)),
        kept=records.kept,
        start=next((c for c in options if c["name"] == "start"), None),
        metric={"top1": "top-1", "nll": "NLL"}.get(metric, metric),
        sheet=tables.candidates(options),
    )


# --- the test images


def _teacher(records: RunRecords) -> Section:
    id, title = "teacher", "Teacher and student"
    predictions = records.predictions
    if predictions is None or "teacher" not in predictions.roles:
        return missing(
            id, title, f"The models have not been asked about the test images yet: {records.reached}."
        )
    parts = [
        agreement(predictions, role)
        for role in ("start", "control", "distilled")
        if role in predictions.roles
    ]
    lines = [reliability(predictions, role) for role in NAMES if role in predictions.roles]
    errors = {row["role"]: row["ece"] for row in records.rows if row.get("ece") is not None}
    return render_section(
        id,
        title,
        "teacher.html.j2",
        agreement=embed(plots.agreement(parts)),
        reliability=embed(plots.reliability(lines)),
        agreements=", ".join(f"the {role_name(p.role).lower()} on {p.agreement:.1f}%" for p in parts),
        calibration=", ".join(f"{role_name(role).lower()} {error:.2f}%" for role, error in errors.items()),
    )


def _classes(records: RunRecords) -> Section:
    id, title = "classes", "Class by class"
    predictions = _both(records)
    if predictions is None:
        return missing(id, title, f"There is no student to set against its start yet: {records.reached}.")
    names = class_names(predictions.classes)
    changes = class_changes(predictions, "start", "distilled")
    matrix = confusion_matrix(predictions, "distilled")
    chosen = hardest_classes(matrix, MATRIX_CLASSES)
    moved = any(c.change for c in changes)
    called = [names[predictions.classes[i]] for i in chosen]
    smallest, largest = min(c.n for c in changes), max(c.n for c in changes)
    return render_section(
        id,
        title,
        "classes.html.j2",
        change=embed(plots.class_changes(changes, names)) if moved else None,
        sizes=str(smallest) if smallest == largest else f"{smallest} to {largest}",
        point=" to ".join(dict.fromkeys(f"{100 / n:.3g}" for n in (largest, smallest))),
        change_sheet=tables.class_changes(changes, names),
        confusion=embed(plots.confusion(matrix[chosen][:, chosen], called)),
        shown=len(chosen),
        total=len(predictions.classes),
        mistakes=tables.confusions(confusions(predictions, "distilled", CONFUSIONS), names),
    )


def _images(records: RunRecords) -> Section:
    id, title = "images", "Images that changed"
    predictions = _both(records)
    if predictions is None:
        return missing(id, title, f"There is no student to set against its start yet: {records.reached}.")
    chosen = greatest_changes(predictions, "start", "distilled", CARDS)
    total = {
        kind: len(v)
        for kind, v in greatest_changes(predictions, "start", "distilled", len(predictions)).items()
    }
    try:
        cards = {kind: _cards(records, predictions, positions.tolist()) for kind, positions in chosen.items()}
    except TutelageError as error:
        return missing(id, title, f"The test images cannot be read: {error}")
    return render_section(id, title, "images.html.j2", cards=cards, total=total)


def _both(records: RunRecords) -> Predictions | None:
    predictions = records.predictions
    return (
        predictions
        if predictions is not None and {"start", "distilled"} <= predictions.roles.keys()
        else None
    )


def _cards(records: RunRecords, predictions: Predictions, positions: Sequence[int]) -> list[Card]:
    from tutelage.data.decode import UnreadableImage
    from tutelage.report.thumbnails import picture

    part = _splits(records.recipe_text).test
    place = {id: position for position, id in enumerate(part.ids)}
    names = class_names(predictions.classes)
    cards = []
    for position in positions:
        id, label = str(predictions.ids[position]), int(predictions.labels[position])
        if id not in place:
            raise TutelageError(f"{part.images.name}: has no image {id!r} any more")
        try:
            shown = picture(part.image(place[id]))
        except UnreadableImage as error:
            raise TutelageError(str(error)) from None
        answers = [
            Answer(
                role,
                names[predictions.classes[predictions.roles[role].first[position]]],
                100 * float(predictions.roles[role].prob[position, 0]),
                bool(predictions.roles[role].first[position] == label),
            )
            for role in ("start", "distilled", "teacher")
            if role in predictions.roles
        ]
        cards.append(Card(shown, id, names[predictions.classes[label]], answers))
    return cards


def _views(records: RunRecords) -> Section:
    id, title = "views", "What the models saw"
    preflight = records.preflight or {}
    inputs = {who: (preflight.get(who) or {}).get("input") for who in ("teacher", "student")}
    if not all(inputs.values()):
        return missing(
            id, title, f"It is not recorded yet how the models want their images: {records.reached}."
        )
    specs = {who: InputSpec.from_dict(values) for who, values in inputs.items() if values}
    try:
        rows = _contact_sheet(records.recipe_text, tuple(specs.values()))
    except TutelageError as error:
        return missing(id, title, f"The training images cannot be read: {error}")
    names = class_names([row.label for row in rows])
    return render_section(id, title, "views.html.j2", rows=rows, names=names, specs=specs)


@lru_cache(maxsize=4)
def _contact_sheet(recipe_text: str, specs: tuple[InputSpec, ...]) -> list[Any]:
    """Kept, since a watched page is made again after every epoch and the views are the same."""
    from tutelage.report.thumbnails import contact_sheet

    return contact_sheet(_splits(recipe_text).train, _recipe(recipe_text), specs)


@lru_cache(maxsize=4)
def _splits(recipe_text: str) -> Any:
    from tutelage.data.splits import make_splits

    return make_splits(_recipe(recipe_text).data)


def _recipe(text: str) -> Any:
    import yaml

    from tutelage.core.recipe import parse_recipe

    return parse_recipe(yaml.safe_load(text), where="recipe.yaml")


# --- what it was made with


def _checks(records: RunRecords) -> Section:
    id, title = "checks", "Checked before training"
    if records.preflight is None:
        return missing(id, title, f"The pre-flight has not been made yet: {records.reached}.")
    return render_section(
        id,
        title,
        "checks.html.j2",
        preflight=records.preflight,
        rates=_rates(records.preflight),
        resolutions=records.preflight.get("resolutions") or [],
        duration=tables.duration,
    )


def _rates(preflight: dict[str, Any]) -> str:
    """``student 61 images/s in fp32, 42 in bf16``, for each network probed."""
    found = []
    for who, rates in ((preflight.get("precision") or {}).get("images_per_s") or {}).items():
        if isinstance(rates, dict):
            found.append(
                f"{who} " + ", ".join(f"{rate:,.0f} images/s in {kind}" for kind, rate in rates.items())
            )
    return "; ".join(found)


def _record(records: RunRecords) -> Section:
    versions = dict(records.versions or {})
    machine = versions.pop("machine", None) or {}
    command, started, _ = (versions.pop(key, "") for key in ("command", "started", "seeds"))
    return render_section(
        "record",
        "Recipe, versions, machine, times",
        "record.html.j2",
        records=records,
        settings=tables.settings(records.recipe),
        times=tables.times(records),
        total=tables.duration(records.seconds),
        packages=versions,
        machine=machine,
        command=command,
        started=started,
    )


def class_names(classes: Sequence[str]) -> dict[str, str]:
    """What a class is called: WordNet ids by their first English name, unless two would share it."""
    if not classes or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return {name: name for name in classes}
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = {name: info.label_name_to_description(name).split(",")[0] for name in set(classes)}
    shared = list(known.values())
    return {
        name: called if shared.count(called) == 1 else f"{called} ({name})" for name, called in known.items()
    }
