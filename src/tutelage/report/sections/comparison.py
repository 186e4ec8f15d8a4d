"""The figures of every model that was measured."""

from __future__ import annotations

from tutelage.report import plots, tables
from tutelage.report.page import UNLABELLED, Section, awaited, embed, missing, render_section
from tutelage.report.run_records import RunRecords


def comparison_section(records: RunRecords) -> Section:
    """Show the table of every measured model and deployed file."""
    id, title = "comparison", "Comparison of all models"
    if not records.rows:
        return awaited(id, title, f"No model has been evaluated on the test images yet: {records.reached}.")
    return render_section(
        id,
        title,
        "comparison.html.j2",
        sheet=tables.comparison(records.rows),
        caption=_measured_on(records),
        notes=[*(records.comparison or {}).get("notes", ()), *tables.footnotes(records.rows)],
    )


def _measured_on(records: RunRecords) -> str:
    row = records.rows[0]
    conditions = row.get("conditions") or {}
    words = {"device": "device {}", "threads": "threads {}", "batch_size": "throughput in batches of {}"}
    found = [
        pattern.format(conditions[key]) for key, pattern in words.items() if conditions.get(key) is not None
    ]
    parts = [
        f"Evaluated on {row['n']:,} test images" if row.get("n") else "Evaluated on the test images",
        f" ({', '.join(found)})" if found else "",
        ". The small number below a value is its change compared with the first row",
        ", for top-1 with its paired 95% interval in brackets"
        if any(r.get("paired") for r in records.rows)
        else "",
    ]
    if any(r.get("latency_p10") is not None for r in records.rows):
        parts.append(". The range below a latency is that from its 10th to its 90th percentile")
    return f"{''.join(parts)}."


def tradeoff_section(records: RunRecords) -> Section:
    """Show accuracy against latency and size."""
    id, title = "tradeoff", "Size, speed and accuracy"
    rows = [row for row in records.rows if not (records.random_start and row["role"] == "start")]
    figures = {cost: plots.tradeoff(rows, cost) for cost in ("latency_ms", "size_mb")}
    shown = [(cost, "", embed(figure)) for cost, figure in figures.items() if figure]
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
    if not shown:
        return awaited(id, title, f"Fewer than two models have been evaluated: {records.reached}.")
    return render_section(
        id, title, "tradeoff.html.j2", figures=shown, without_start=len(rows) < len(records.rows)
    )
