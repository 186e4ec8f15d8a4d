"""The images of a run: how many each part has, of which classes, and who has seen their labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.splits import Splits, Subset
from tutelage.report.class_names import class_names
from tutelage.report.page import Section, awaited, missing, render_section
from tutelage.report.run_records import FITS, RunRecords
from tutelage.report.sections.data import splits
from tutelage.report.tables import ABSENT, Cell, Sheet, number

NAMES = {
    "train": "Training",
    "unlabelled": "Training, unlabelled",
    "teacher": "Teacher’s own",
    "val": "Validation",
    "test": "Test",
}


def data_section(records: RunRecords) -> Section:
    """Show the images and classes of each part, and who sees its labels."""
    id, title = "data", "Data"
    if records.splits is None and not records.finished:
        return awaited(id, title, f"The images have not been divided yet: {records.reached}.")
    why, found = "", None
    try:
        found = splits(records.recipe_text, records.copies)
    except TutelageError as error:
        why = str(error)
    record = records.splits or (found.record() if found else None)
    if record is None:
        return missing(id, title, f"The images cannot be read: {why}")
    parts = {role: part for role in NAMES if (part := record.get("parts", {}).get(role))}
    return render_section(
        id,
        title,
        "data.html.j2",
        sheet=_parts(records, parts, found),
        classes=_classes(found) if found and found.classes else None,
        notes=record.get("notes") or [],
        why=why,
    )


def _parts(records: RunRecords, parts: dict[str, dict[str, Any]], found: Splits | None) -> Sheet:
    lines = []
    for role, part in parts.items():
        subset = found.parts.get(role) if found else None
        lines.append(
            [
                Cell(NAMES[role]),
                number(part.get("size"), 0),
                number(part.get("labelled"), 0),
                *_sizes(subset),
                Cell(_sees_labels(role, records, parts)),
                Cell(part.get("source") or ABSENT, note=part.get("split") or ""),
            ]
        )
    columns = ["Part", "Images", "Labelled", "Classes", "Images a class", "Who sees the labels", "Source"]
    return Sheet(columns, lines, words=frozenset({5, 6}))


def _sizes(subset: Subset | None) -> tuple[Cell, Cell]:
    """The number of classes with labelled images, and their sizes from the smallest to the largest."""
    counts = np.array([]) if subset is None else _counts(subset)
    counts = counts[counts > 0]
    if not counts.size:
        return Cell(ABSENT), Cell(ABSENT)
    least, most = int(counts.min()), int(counts.max())
    return number(counts.size, 0), Cell(f"{least:,}" if least == most else f"{least:,} to {most:,}", least)


def _counts(subset: Subset) -> np.ndarray:
    """The number of labelled images of each class, (classes,)."""
    return np.bincount(subset.labels[subset.labels >= 0], minlength=len(subset.classes))


def _sees_labels(role: str, records: RunRecords, parts: dict[str, Any]) -> str:
    if not parts[role].get("labelled"):
        return (
            "nobody; the student learns from the teacher’s predictions" if role == "unlabelled" else "nobody"
        )
    if role == "train":
        fitted = "teacher" not in parts and any(records.stage(stage) for stage in FITS)
        control = records.recipe.get("control", True)
        who = [*(["teacher"] if fitted else []), "student", *(["control"] if control else [])]
        return f"{', '.join(who[:-1])} and {who[-1]}" if len(who) > 1 else who[0]
    return {
        "teacher": "the teacher only",
        "val": "model selection",
        "test": "the final evaluation only",
    }.get(role, "nobody")


def _classes(found: Splits) -> Sheet:
    names = class_names(found.classes)
    parts = {role: _counts(part) for role, part in found.parts.items() if part.labelled}
    order = [role for role in NAMES if role in parts]
    lines = [
        [
            Cell(names[name], names[name], name if names[name] != name else ""),
            *(number(int(parts[role][place]), 0) for role in order),
        ]
        for place, name in enumerate(found.classes)
    ]
    return Sheet(["Class", *(NAMES[role] for role in order)], lines)
