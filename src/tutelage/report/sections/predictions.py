"""What the models predict for the test images."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.core.records import RunPredictions
from tutelage.report import class_tables, plots
from tutelage.report.class_names import class_names
from tutelage.report.page import UNLABELLED, Section, awaited, embed, missing, render_section
from tutelage.report.predictions import (
    LEAST,
    TELLING,
    ClassFigures,
    agreement,
    class_figures,
    confusion_matrix,
    confusions,
    hardest_classes,
    reliability,
)
from tutelage.report.run_records import RunRecords
from tutelage.report.style import role_name

MATRIX_CLASSES = 30  # more cannot be read
CONFUSIONS = 12


def agreement_section(records: RunRecords) -> Section:
    """Show how often the models agree with the teacher, and how well they are calibrated."""
    id, title = "agreement", "Agreement and calibration"
    predictions = records.predictions_of("teacher")
    if predictions is None:
        return awaited(id, title, f"There are no predictions for the test images yet: {records.reached}.")
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
    roles = _shown_roles(records, predictions)
    parts = [agreement(predictions, role) for role in roles if role != "teacher"]
    lines = [reliability(predictions, role) for role in roles]
    errors = {row["role"]: row["ece"] for row in records.rows if row.get("ece") is not None}
    return render_section(
        id,
        title,
        "agreement.html.j2",
        agreement=embed(plots.agreement(parts)),
        reliability={one.role: embed(plots.reliability(one)) for one in lines},
        errors=errors,
        calibration=(records.comparison or {}).get("calibration"),
        least=LEAST,
        agreements=", ".join(f"{role_name(p.role).lower()} {p.agreement:.1f}%" for p in parts),
    )


def _shown_roles(records: RunRecords, predictions: RunPredictions) -> list[str]:
    """The models that are looked at one by one; a start with random weights predicts nothing."""
    roles = ("teacher", "start", "control", "distilled")
    return [r for r in roles if r in predictions.roles and not (r == "start" and records.random_start)]


def _absent(records: RunRecords, changes: Sequence[ClassFigures]) -> list[str]:
    """Name the classes of the data that have no test image."""
    there = {c.name for c in changes}
    missing = [name for name in (records.splits or {}).get("classes") or () if name not in there]
    names = class_names(missing)
    return [names[name] for name in missing]


def _weakest_first(found: Sequence[ClassFigures]) -> list[ClassFigures]:
    return sorted(found, key=lambda one: (one.recall("distilled"), one.name))


def classes_section(records: RunRecords) -> Section:
    """Show recall and precision of each class, and the most frequent mistakes."""
    id, title = "classes", "Results for each class"
    baseline = records.baseline
    predictions = records.predictions_of(baseline, "distilled")
    if predictions is None:
        return awaited(id, title, f"There are no predictions to compare yet: {records.reached}.")
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
    names = class_names(predictions.classes)
    found = class_figures(predictions, _shown_roles(records, predictions))
    matrix = confusion_matrix(predictions, "distilled")
    chosen = hardest_classes(matrix, MATRIX_CLASSES)
    moved = any(c.change(baseline) for c in found)
    called = [names[predictions.classes[i]] for i in chosen]
    smallest, largest = min(c.n for c in found), max(c.n for c in found)
    return render_section(
        id,
        title,
        "classes.html.j2",
        baseline=baseline,
        change=embed(plots.class_changes(found, baseline, names)) if moved else None,
        few=[c.name for c in found if not c.telling],
        absent=_absent(records, found),
        least=TELLING,
        classes=len(found),
        sizes=str(smallest) if smallest == largest else f"{smallest} to {largest}",
        point=" to ".join(dict.fromkeys(f"{100 / n:.3g}" for n in (largest, smallest))),
        each=class_tables.each_class(_weakest_first(found), names, baseline),
        over=class_tables.over_classes(found, names),
        confusion=embed(plots.confusion(matrix[chosen][:, chosen].toarray(), matrix.sum(1)[chosen], called)),
        counted=len(chosen) <= plots.COUNTED,
        shown=len(chosen),
        total=len(predictions.classes),
        mistakes=class_tables.confusions(confusions(predictions, "distilled", CONFUSIONS), names, baseline),
    )
