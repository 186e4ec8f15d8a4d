"""Pictures that cannot be decoded, and those that show little: dark, plain, blurred, tiny, or very long ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.finding import Finding, Item, alone
from tutelage.data.doctor.pictures import LOOKED_AT, PLAIN, Pictures

DARK = 0.25  # of white: 99% of the pixels are darker
BLURRED = 0.01  # sharpness; see `Pictures`
TINY = 32  # pixels of the shorter side
SMALL_SHARE = 0.25  # of the median shorter side: smaller pictures are tiny beside the others
LONG = 3.0  # times as long as wide, or the other way round


def unreadable(images: Collection, pictures: Pictures) -> list[Finding]:
    """Find the images that cannot be decoded."""
    items = [
        Item(number, reason, "" if images.roles[number] == "test" else f"cannot be decoded: {reason}")
        for number, reason in sorted(pictures.unreadable.items())
    ]
    text = "A run passes over them, and stops at more than data.max_bad_images of them. Replace them or leave them out."
    return alone("unreadable", "Cannot be decoded", "problem", text, items)


def pictures_that_show_little(images: Collection, pictures: Pictures) -> list[Finding]:
    """Find dark, plain, blurred, tiny and very long pictures. They stay: what is deployed may get such ones too."""
    shorter = np.minimum(pictures.width, pictures.height)
    longer = np.maximum(pictures.width, pictures.height)
    usual = float(np.median(shorter[pictures.readable])) if pictures.readable.any() else 0.0
    dark = pictures.light < DARK
    plain = ~dark & (pictures.contrast < PLAIN)
    tiny = (shorter < TINY) | (shorter < SMALL_SHARE * usual)
    blurred = ~dark & ~plain & ~tiny & (pictures.sharpness < BLURRED)
    ratio = longer / np.maximum(shorter, 1)

    def found(
        mask: np.ndarray, order: np.ndarray, why: Callable[[int], str], key: str, title: str, text: str
    ) -> list[Finding]:
        numbers = np.flatnonzero(mask & pictures.readable)
        worst_first = numbers[np.argsort(order[numbers], kind="stable")].tolist()
        return alone(key, title, "look", text, [Item(number, why(number)) for number in worst_first])

    def size(number: int) -> str:
        return f"{pictures.width[number]} x {pictures.height[number]} px"

    keep = "Leave them out only if the student will not meet such pictures."
    return [
        *found(
            dark,
            pictures.light,
            lambda n: f"99% of it is below {pictures.light[n]:.0%} of white",
            "dark",
            "Dark",
            f"Hardly anything can be seen. {keep}",
        ),
        *found(
            plain,
            pictures.contrast,
            lambda n: f"contrast {pictures.contrast[n]:.1%}",
            "plain",
            "Nearly one colour",
            f"They show nothing. {keep}",
        ),
        *found(
            blurred,
            pictures.sharpness,
            lambda n: f"sharpness {pictures.sharpness[n]:.4f}",
            "blurred",
            "Blurred",
            f"Blurred even at {LOOKED_AT} pixels. {keep}",
        ),
        *found(
            tiny,
            shorter,
            size,
            "tiny",
            "Tiny",
            f"A shorter side below {TINY} pixels, or below a quarter of what is usual here. {keep}",
        ),
        *found(
            ratio > LONG,
            -ratio,
            size,
            "odd_shape",
            "Odd shape",
            "More than three times as long as wide, or the other way round: a crop in the middle shows a part of it.",
        ),
    ]
