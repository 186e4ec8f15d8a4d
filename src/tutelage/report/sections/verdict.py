"""The head of the page: which models, and whether the student improved."""

from __future__ import annotations

from tutelage.report import plots, tables
from tutelage.report.headline import headline, sentence
from tutelage.report.page import Section, embed, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.summary import summary
from tutelage.report.time_left import time_left


def verdict_section(records: RunRecords) -> Section:
    """Show which models took part, how far the run got, and its verdict."""
    pairs = [
        pair
        for pair in records.verdict.get("pairs") or []
        if not (records.random_start and pair["old"] == "start")
    ]
    return render_section(
        "verdict",
        "Verdict",
        "verdict.html.j2",
        records=records,
        who=_who(records),
        labels=_labels(records),
        teacher=_teacher(records),
        headline=headline(records),
        summary=summary(records),
        sentence=sentence(records),
        figure=embed(plots.intervals(pairs)) if pairs else None,
        off_scale=bool(plots.beyond(pairs)),
        left=time_left(records),
        pairs=tables.pairs(records),
    )


def _who(records: RunRecords) -> str:
    recipe = records.recipe
    models = ((recipe.get(who) or {}).get("model", "?") for who in ("student", "teacher"))
    student, teacher = map(tables.short_model, models)
    return f"student {student}, teacher {teacher}, data {(recipe.get('data') or {}).get('train', '?')}"


def _teacher(records: RunRecords) -> str:
    """Tell the licence of the teacher's weights, and where its targets are not of the views that the student sees."""
    found = (records.preflight or {}).get("teacher") or {}
    told = []
    if found.get("stored"):
        told.append(
            "The teacher’s answers are stored for whole images: all augmented views of an image have the same target."
        )
    if found.get("licence"):
        told.append(
            f"Licence of the teacher’s weights: {found['licence']}. It may restrict what the student may be used for."
        )
    return " ".join(told)


def _labels(records: RunRecords) -> str:
    """Tell which labels teacher and student have seen, where these are not the same."""
    parts = (records.splits or {}).get("parts") or {}
    train, unlabelled, teacher = (parts.get(role) or {} for role in ("train", "unlabelled", "teacher"))
    if not train.get("labelled") or not (unlabelled or teacher):
        return ""
    labelled = f"Student and control learn from the labels of {train['labelled']:,} images"
    more = f"; the student also from {unlabelled['size']:,} images without labels" if unlabelled else ""
    own = f" The teacher was fitted to {teacher['labelled']:,} other labelled images." if teacher else ""
    return f"{labelled}{more}.{own}"
