"""The names of classes on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence


def class_names(classes: Sequence[str]) -> dict[str, str]:
    """Map classes to readable names: a WordNet id to its first English name, with the id where two share it."""
    if not classes or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return {name: name for name in classes}
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = {name: info.label_name_to_description(name).split(",")[0] for name in set(classes)}
    shared = list(known.values())
    return {
        name: called if shared.count(called) == 1 else f"{called} ({name})" for name, called in known.items()
    }
