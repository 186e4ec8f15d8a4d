"""What the models predict for the test images."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.report import plots, tables
from tutelage.report.class_names import class_names
from tutelage.report.page import UNLABELLED, Section, embed, missing, render_section
from tutelage.report.predictions import (
    TELLING,
    ClassChange,
    agreement,
    class_changes,
    confusion_matrix,
    confusions,
    hardest_classes,
    reliability,
)
from tutelage.report.run_records import RunRecords
from tutelage.report.style import NAMES, role_name

MATRIX_CLASSES = 30  # more cannot be read
CONFUSIONS = 12


def agreement_section(records: RunRecords) -> Section:
    """Show how often the models agree with the teacher, and how well they are calibrated."""
    id, title = "agreement", "Agreement and calibration"
    predictions = records.predictions_of("teacher")
    if predictions is None:
        return missing(id, title, f"There are no predictions for the test images yet: {records.reached}.")
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
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
        "agreement.html.j2",
        agreement=embed(plots.agreement(parts)),
        reliability=embed(plots.reliability(lines)),
        agreements=", ".join(f"{role_name(p.role).lower()} {p.agreement:.1f}%" for p in parts),
        calibration=", ".join(f"{role_name(role).lower()} {error:.2f}%" for role, error in errors.items()),
    )


def _absent(records: RunRecords, changes: Sequence[ClassChange]) -> list[str]:
    """Name the classes of the data that have no test image."""
    there = {c.name for c in changes}
    missing = [name for name in (records.splits or {}).get("classes") or () if name not in there]
    names = class_names(missing)
    return [names[name] for name in missing]


def classes_section(records: RunRecords) -> Section:
    """Show the change of each class and the most frequent mistakes."""
    id, title = "classes", "Results for each class"
    baseline = records.baseline
    predictions = records.predictions_of(baseline, "distilled")
    if predictions is None:
        return missing(id, title, f"There are no predictions to compare yet: {records.reached}.")
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
    names = class_names(predictions.classes)
    changes = class_changes(predictions, baseline, "distilled")
    matrix = confusion_matrix(predictions, "distilled")
    chosen = hardest_classes(matrix, MATRIX_CLASSES)
    moved = any(c.change for c in changes)
    called = [names[predictions.classes[i]] for i in chosen]
    smallest, largest = min(c.n for c in changes), max(c.n for c in changes)
    return render_section(
        id,
        title,
        "classes.html.j2",
        baseline=baseline,
        change=embed(plots.class_changes(changes, names)) if moved else None,
        few=[c.name for c in changes if not c.telling],
        absent=_absent(records, changes),
        least=TELLING,
        classes=len(changes),
        sizes=str(smallest) if smallest == largest else f"{smallest} to {largest}",
        point=" to ".join(dict.fromkeys(f"{100 / n:.3g}" for n in (largest, smallest))),
        change_sheet=tables.class_changes(changes, names, baseline),
        confusion=embed(plots.confusion(matrix[chosen][:, chosen].toarray(), matrix.sum(1)[chosen], called)),
        counted=len(chosen) <= plots.COUNTED,
        shown=len(chosen),
        total=len(predictions.classes),
        mistakes=tables.confusions(confusions(predictions, "distilled", CONFUSIONS), names, baseline),
    )
