"""Nested mappings with dotted keys, as people and trackers read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` as ``{"train.lr": 1}``; an empty mapping stays one."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}{separator}{inner}": entry for inner, entry in flat(value, separator).items()}
        else:
            found[key] = value
    return found
