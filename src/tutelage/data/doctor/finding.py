"""A finding: something odd about some images or classes, with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.data.doctor.collection import Collection

Level = Literal["problem", "look", "note"]


@dataclass(frozen=True)
class Item:
    """An image of a finding.

    Attributes:
        number: of the image in the `Collection`.
        why: what was measured of it, in a few words; "" where the finding says it.
        leave_out: the reason for which the list of `--fix` leaves it out; "" where it stays.
        certain: whether the reason holds for certain; where it does not, the list has the image as a comment.
    """

    number: int
    why: str = ""
    leave_out: str = ""
    certain: bool = True


@dataclass(frozen=True)
class Finding:
    """Something odd about some images or classes.

    Attributes:
        key: a name for programs, such as ``copies_of_test``.
        title: a few words.
        level: ``problem``: figures or training suffer; ``look``: a person should look; ``note``: good to know.
        text: what it means and what to do.
        groups: images that belong together, such as the copies of one picture; else one image in each.
        classes: names of classes that it concerns; () where it concerns images.
    """

    key: str
    title: str
    level: Level
    text: str
    groups: tuple[tuple[Item, ...], ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def items(self) -> list[Item]:
        """All images."""
        return [item for group in self.groups for item in group]

    @property
    def count(self) -> int:
        """How many images or classes there are, or groups of copies."""
        return len(self.groups) or len(self.classes)

    def to_dict(self, images: Collection) -> dict[str, Any]:
        """As JSON values."""
        return {
            "key": self.key,
            "title": self.title,
            "level": self.level,
            "text": self.text,
            "count": self.count,
            "classes": list(self.classes),
            "groups": [[_item(item, images) for item in group] for group in self.groups],
        }


def _item(item: Item, images: Collection) -> dict[str, Any]:
    return {
        "part": str(images.roles[item.number]),
        "image": images.id(item.number),
        "class": images.class_of(item.number),
        "why": item.why,
        "leave_out": item.leave_out,
        "certain": item.certain,
    }


def alone(key: str, title: str, level: Level, text: str, items: Sequence[Item]) -> list[Finding]:
    """A finding whose images do not belong together; none without images."""
    return [Finding(key, title, level, text, tuple((item,) for item in items))] if items else []
