"""The cascade of student and teacher, where `tutelage cascade` has made one."""

from __future__ import annotations

from tutelage.report import plots
from tutelage.report.page import Section, embed, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.tables import Cell, Sheet, number, signed

COSTS = (("latency_ms", "average latency of an image, ms"), ("gmacs", "average GMACs of an image"))
NAMES = {"student": "Student alone", "cascade": "Cascade", "teacher": "Teacher alone"}


def cascade_sections(records: RunRecords) -> list[Section]:
    """Make the section of the cascade; none for a run without one, which is the default."""
    found = records.cascade
    if not found:
        return []
    test, cost = found["test"], found["cost"]
    shares = {"student": 0.0, "cascade": 1 - test["coverage"], "teacher": 1.0}
    rows = [
        [
            Cell(name),
            number(100 * shares[role], 1),
            number((test["top1"] or {}).get(role), 2),
            number(cost["gmacs"][role], 3),
            number(cost["latency_ms"][role], 2),
        ]
        for role, name in NAMES.items()
    ]
    shown = next((one for one in COSTS if cost[one[0]]["cascade"] is not None), None)
    differences = [
        f"{signed(pair['difference'])} ({signed(pair['low'])} to {signed(pair['high'])}) against the {name} alone"
        for name, pair in (test["paired"] or {}).items()
    ]
    columns = ["", "To the teacher, %", "Top-1, %", "GMACs", "Latency, ms"]
    section = render_section(
        "cascade",
        "Cascade of student and teacher",
        "cascade.html.j2",
        found=found,
        sheet=Sheet(columns, rows, strong=frozenset({1})),
        differences=differences,
        curve=embed(plots.cascade_curve(found)),
        costs=embed(plots.cascade_costs(found, *shown)) if shown and test["top1"] else None,
    )
    return [section]
