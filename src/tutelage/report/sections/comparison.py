"""The figures of every model that was measured."""

from __future__ import annotations

from tutelage.report import plots, tables
from tutelage.report.page import Section, embed, missing, render_section
from tutelage.report.run_records import RunRecords


def comparison_section(records: RunRecords) -> Section:
    """Show the table of every measured model and deployed file."""
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
    parts = [f"Measured on {row['n']:,} test images" if row.get("n") else "Measured on the test images"]
    parts += [
        pattern.format(conditions[key]) for key, pattern in words.items() if conditions.get(key) is not None
    ]
    brackets = "; in brackets, its paired 95% interval" if any(r.get("paired") for r in records.rows) else ""
    spread = ", below a latency its 10th and 90th percentile"
    return f"{', '.join(parts)}. Below a figure stands its change against the first row{brackets}{spread}."


def tradeoff_section(records: RunRecords) -> Section:
    """Show accuracy against latency and size."""
    id, title = "tradeoff", "Size, speed and accuracy"
    rows = [row for row in records.rows if not (records.random_start and row["role"] == "start")]
    figures = {cost: plots.tradeoff(rows, cost) for cost in ("latency_ms", "size_mb")}
    shown = {cost: embed(figure) for cost, figure in figures.items() if figure}
    if not shown:
        return missing(id, title, f"Fewer than two models have been measured: {records.reached}.")
    return render_section(
        id, title, "tradeoff.html.j2", figures=shown, without_start=len(rows) < len(records.rows)
    )
