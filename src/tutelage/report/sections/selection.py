"""Which candidate was selected on the validation images."""

from __future__ import annotations

from tutelage.report import plots, tables
from tutelage.report.page import Section, awaited, embed, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.style import accuracy_key, accuracy_name


def selection_section(records: RunRecords) -> Section:
    """Show the candidates with their figures on the validation images."""
    id, title = "selection", "Model selection"
    options = (records.candidates or {}).get("candidates") or []
    if not options:
        return awaited(id, title, f"No candidate has been evaluated yet: {records.reached}.")
    metric = (records.candidates or {}).get("metric", "top1")
    drawn = [c for c in options if not (records.random_start and c["name"] == "start")]
    # without weights between the start and the trained ones, the table says all
    mixed = any(c.get("alpha") not in (0, 1, None) for c in drawn)
    return render_section(
        id,
        title,
        "selection.html.j2",
        figure=embed(plots.candidates(drawn, metric)) if mixed else None,
        kept=records.kept,
        start=next((c for c in options if c["name"] == "start"), None),
        metric={"top1": "top-1", "nll": "NLL", "fidelity": "fidelity to the teacher (lowest KL)"}.get(
            metric, metric
        ),
        screened=any(c.get("screened") for c in options),
        finalists=sum(not c.get("screened") for c in options) - 1,
        choice=((records.candidates or {}).get("training") or {}).get("kept_against_start"),
        measured=accuracy_name(options[0]["val"]),
        key=accuracy_key(options[0]["val"]),
        sheet=tables.candidates(options),
    )
