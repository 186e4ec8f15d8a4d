"""The list of images to leave out, for a person to look through and for `data.exclude`."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.finding import Finding
from tutelage.data.exclude import REASON, writer
from tutelage.data.sources.tree import counted

HEAD = """\
# Images to leave out of training and model selection, with the reason for each. Look through them, and delete
# the lines of images that should stay. Then: tutelage distill ... data.exclude=THIS_FILE
"""
DOUBT = "Look at each, and remove the # before those to leave out"


def text_of(findings: Sequence[Finding], images: Collection) -> tuple[str, int, int]:
    """Make the list.

    Args:
        findings: each image is left out for the first one that names a reason.
        images: all of them.

    Returns:
        The text, the number of images that it leaves out, and of those that it has as comments.
    """
    write = writer(images.sets)
    sections, done, certain = [HEAD], set[int](), 0
    for finding in findings:
        lines = []
        for item in finding.items:
            if not item.leave_out or item.number in done:
                continue
            done.add(item.number)
            name = write(images.set_of(item.number), images.id(item.number))
            fits = _fits(name)  # else another image might be left out in its place
            certain += item.certain and fits
            shown = name if fits else repr(name)
            comment = "" if item.certain and fits else "# "
            lines.append(f"{comment}{shown}{REASON}{' '.join(item.leave_out.split())}")
        if lines:
            doubt = f". {DOUBT}" if not all(item.certain for item in finding.items) else ""
            title = f"\n# {finding.title}: {counted(len(lines), 'image')}{doubt}"
            sections.append("\n".join([title, *lines, ""]))
    return "".join(sections), certain, len(done) - certain


def _fits(name: str) -> bool:
    """Whether a line of a list can hold an id."""
    return (
        name == name.strip()
        and not name.startswith("#")
        and REASON not in name
        and len(name.splitlines()) == 1
    )
