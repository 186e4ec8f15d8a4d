"""What was found about the images of a run, all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.data.doctor.classes import ClassSizes
from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.finding import Finding, Level
from tutelage.data.doctor.leave_out import text_of

LEVELS: tuple[Level, ...] = ("problem", "look", "note")  # the gravest first


@dataclass(frozen=True)
class Checkup:
    """What was found about the images of a run.

    Attributes:
        source: of the training images, as written.
        images: all of them.
        sizes: images of each class.
        findings: the gravest first.
        notes: what could not be checked, and what was passed over, in sentences.
    """

    source: str
    images: Collection
    sizes: ClassSizes
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        source: str,
        images: Collection,
        sizes: ClassSizes,
        findings: Sequence[Finding],
        notes: Sequence[str],
    ) -> Checkup:
        """Put the gravest findings first; otherwise they stay in order."""
        ranked = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
        return cls(source, images, sizes, tuple(ranked), tuple(notes))

    def summary(self) -> str:
        """Count the images of each part and the classes."""
        counts: dict[str, int] = {}
        for role, part in self.images.parts:
            counts[role] = counts.get(role, 0) + len(part)
        parts = ", ".join(f"{count:,} {role}" for role, count in counts.items())
        classes = f", {len(self.images.classes):,} classes" if self.images.classes else ", no labels"
        return f"{len(self.images):,} images ({parts}){classes}"

    def leave_out(self) -> tuple[str, int, int]:
        """Return the list of images to leave out, how many it leaves out, and how many it has as comments."""
        return text_of(self.findings, self.images)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "source": self.source,
            "parts": [
                {"part": role, "source": part.images.name, "images": len(part)}
                for role, part in self.images.parts
            ],
            "classes": [
                {"class": name, **{role: int(counts[label]) for role, counts in self.sizes.counts.items()}}
                for label, name in enumerate(self.images.classes)
            ],
            "findings": [finding.to_dict(self.images) for finding in self.findings],
            "notes": list(self.notes),
        }
