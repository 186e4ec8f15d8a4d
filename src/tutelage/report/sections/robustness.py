"""Accuracy on corrupted test images, where the run has measured it."""

from __future__ import annotations

from tutelage.evaluation.robustness import CORRUPTIONS
from tutelage.report.page import Section, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.style import role_name
from tutelage.report.tables import Cell, Sheet, number, signed

ORDER = ("teacher", "distilled", "control", "start")


def robustness_sections(records: RunRecords) -> list[Section]:
    """Make the section of the corruptions; none for a run that has not measured it, which is the default."""
    found = records.robustness
    if not found:
        return []
    roles = [role for role in ORDER if role in found["mean"]]
    clean = {row["role"]: row.get("top1") for row in records.rows}
    rows = [[Cell("none"), *(number(clean.get(role), 2) for role in roles)]]
    for place, kind in enumerate(found["kinds"]):
        rows.append([Cell(kind), *(number(found["top1"][role][place], 2) for role in roles)])
    rows.append([Cell("mean of all kinds"), *(number(found["mean"][role], 2) for role in roles)])
    pairs = [
        (
            f"{role_name(pair['new'])} against {role_name(pair['old']).lower()}",
            f"{signed(pair['difference'])} ({signed(pair['low'])} to {signed(pair['high'])})",
        )
        for pair in found["pairs"]
    ]
    columns = ["Corruption", *(f"{role_name(role)}, %" for role in roles)]
    section = render_section(
        "robustness",
        "Accuracy on corrupted images",
        "robustness.html.j2",
        sheet=Sheet(columns, rows, strong=frozenset({len(rows) - 1})),
        n=found["n"],
        pairs=pairs,
        strengths=[
            (
                kind,
                ", ".join(f"{value:g}" for value in CORRUPTIONS[kind].strengths),
                CORRUPTIONS[kind].meaning,
            )
            for kind in found["kinds"]
            if kind in CORRUPTIONS
        ],
    )
    return [section]
