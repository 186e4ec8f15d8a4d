"""What the run was made with."""

from __future__ import annotations

from tutelage.report import tables
from tutelage.report.page import Section, render_section
from tutelage.report.run_records import RunRecords


def record_section(records: RunRecords) -> Section:
    """Show the recipe, the versions, the machine and the times."""
    versions = dict(records.versions or {})
    machine = versions.pop("machine", None) or {}
    command, started, _ = (versions.pop(key, "") for key in ("command", "started", "seeds"))
    return render_section(
        "record",
        "Recipe, versions, machine and times",
        "record.html.j2",
        records=records,
        settings=tables.settings(records.recipe, records.choices),
        times=tables.times(records),
        total=tables.duration(records.seconds),
        packages=versions,
        machine=machine,
        command=command,
        started=started,
    )
