"""The page of `tutelage data`: what was found about images before training, with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tutelage.core.files import write_bytes
from tutelage.data.decode import UnreadableImage
from tutelage.data.doctor.checkup import Checkup
from tutelage.data.doctor.finding import Finding, Item
from tutelage.report.page import Section, encode, render_page, render_section
from tutelage.report.tables import Cell, Sheet
from tutelage.report.thumbnails import Picture, picture

GROUPS, COPIES = 60, 4  # pictures of a finding that are shown, or groups of copies; and copies of one picture
LEVEL_WORDS = {"problem": "Problem", "look": "Look", "note": "Note"}


@dataclass(frozen=True)
class Shown:
    """One image; `picture` is None where it cannot be decoded."""

    picture: Picture | None
    id: str
    part: str
    label: str
    why: str
    listed: str


def write_data_page(checkup: Checkup, path: Path) -> None:
    """Write one self-contained HTML file with the findings, the gravest first."""
    sections = [_head(checkup), *(_finding(finding, checkup) for finding in checkup.findings)]
    if checkup.images.classes:
        sections.append(_classes(checkup))
    title = f"Data: {checkup.source}"
    write_bytes(path, encode(render_page(title, sections, plots=False)))


def _head(checkup: Checkup) -> Section:
    return render_section(
        "summary",
        "Summary",
        "data_head.html.j2",
        checkup=checkup,
        levels=LEVEL_WORDS,
        left_out=sum(checkup.leave_out()[1:]),
    )


def _finding(finding: Finding, checkup: Checkup) -> Section:
    groups = [[_shown(item, checkup) for item in group[:COPIES]] for group in finding.groups[:GROUPS]]
    further = [len(group) - COPIES for group in finding.groups[:GROUPS]]
    return render_section(
        finding.key.replace("_", "-"),
        finding.title,
        "data_finding.html.j2",
        finding=finding,
        groups=list(zip(groups, further, strict=True)),
        together=any(len(group) > 1 for group in finding.groups),
    )


def _shown(item: Item, checkup: Checkup) -> Shown:
    images = checkup.images
    thumbnail = None
    with suppress(UnreadableImage):
        thumbnail = picture(images.image(item.number))
    return Shown(
        thumbnail,
        images.id(item.number),
        str(images.roles[item.number]),
        images.class_of(item.number),
        item.why,
        "" if not item.leave_out else "in the list" if item.certain else "in the list, as a comment",
    )


def _classes(checkup: Checkup) -> Section:
    sizes = checkup.sizes
    rows: list[Sequence[Cell]] = []
    for label, name in enumerate(sizes.classes):
        counts = [int(sizes.counts[role][label]) for role in sizes.counts]
        rows.append([Cell(name, name), *(Cell(f"{n:,}", n) for n in (*counts, sum(counts)))])
    sheet = Sheet(["Class", *(role.capitalize() for role in sizes.counts), "All"], rows)
    return render_section("classes", "Images of each class", "data_classes.html.j2", sheet=sheet)
