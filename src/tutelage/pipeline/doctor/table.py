"""The findings about images, for a terminal or for a log."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tutelage.data.doctor.checkup import Checkup
from tutelage.data.doctor.finding import Finding

FIRST = 3  # images that are named
STYLES = {"problem": "red", "look": "yellow", "note": "dim"}


def show(checkup: Checkup, console: Console) -> None:
    """Print a table on a terminal, and lines without any layout elsewhere."""
    if console.is_terminal:
        console.print(_table(checkup))
        return
    print(f"{checkup.source}: {checkup.summary()}")
    for finding in checkup.findings:
        names = first_names(checkup, finding)
        more = f" and {finding.count - len(names):,} more" if finding.count > len(names) else ""
        print(f"{finding.level}: {finding.title}: {finding.count:,}: {', '.join(names)}{more}")
    for note in checkup.notes:
        print(f"note: {note}")


def first_names(checkup: Checkup, finding: Finding) -> list[str]:
    """The first images, groups of copies, or classes of a finding."""
    if not finding.groups:
        return list(finding.classes[:FIRST])
    return [
        " = ".join(checkup.images.id(item.number) for item in group[:2])
        + (" = ..." if len(group) > 2 else "")
        for group in finding.groups[:FIRST]
    ]


def _table(checkup: Checkup) -> Group:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("finding", max_width=30)
    table.add_column("count", justify="right")
    table.add_column("the first of them", no_wrap=True, overflow="ellipsis", ratio=1)
    for finding in checkup.findings:
        names = first_names(checkup, finding)
        title = Text(finding.title, style=STYLES[finding.level])
        table.add_row(title, f"{finding.count:,}", Text("\n".join(names)))
    lines = [Text(f"{checkup.source}: {checkup.summary()}", style="bold")]
    if not checkup.findings:
        lines.append(Text("nothing odd was found"))
    notes = [Text(f"note: {note}", style="dim") for note in checkup.notes]
    return Group(*lines, *([table] if checkup.findings else []), *notes)
