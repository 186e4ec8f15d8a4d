"""The models that there are, with their size and where their weights are."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import nearest
from tutelage.evaluation.size import gmacs, params_m, size_mb
from tutelage.models import timm
from tutelage.models.misnamed import NEAR
from tutelage.models.names import find_names, place_of_weights

AT_HAND = ("installed", "cached")  # ends of `weights` that need no network


@dataclass(frozen=True)
class Listed:
    """An architecture of timm.

    Attributes:
        name: as the recipe takes it.
        params_m: parameters in millions.
        size_mb: parameters and buffers in MiB (2^20 bytes), as float32.
        gmacs: 10^9 multiply-accumulates of one image at its own resolution; None where they cannot be counted.
        resolution: its own, in pixels.
        weights: where its pretrained weights are, see `tutelage.models.place_of_weights`.
    """

    name: str
    params_m: float
    size_mb: float
    gmacs: float | None
    resolution: int
    weights: str


def find_models(pattern: str | None) -> list[tuple[str, str]]:
    """Find models by name; those whose weights need no network come first.

    Args:
        pattern: a glob or a part of the name; None finds the models whose weights need no network.

    Returns:
        The name of each, and where its weights are.

    Raises:
        TutelageError: no name matches.
    """
    if pattern is None:
        return [(name, place_of_weights(name)) for name in timm.at_hand()]
    found = [(name, place_of_weights(name)) for name in find_names(pattern)]
    if not found:
        near = nearest(pattern.strip("*"), find_names("*"), NEAR)
        hint = f"did you mean {near!r}?" if near else "write a part of a name, such as efficientnet"
        raise TutelageError(f"no model of timm matches {pattern!r}; {hint}")
    return sorted(found, key=lambda one: not one[1].endswith(AT_HAND))


def measured(name: str, weights: str) -> Listed:
    """Measure a model that `find_models` found: its network is built without tensors, which takes 0.2 to 2 s."""
    module, spec = timm.hollow(name)
    try:
        macs = gmacs(module, spec.height, spec.width)
    except Exception:  # some networks run on a real device only, and raise anything on this one
        macs = None
    return Listed(name, params_m(module), size_mb(module), macs, spec.height, weights)
