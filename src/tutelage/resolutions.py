"""Which resolution a network is best at: often somewhat above the one it was trained at.

Random crops enlarge what is in them, so that training shows bigger objects than evaluation does (Touvron et
al. 2019, "Fixing the train-test resolution discrepancy").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.data.splits import Part
from tutelage.errors import TutelageError
from tutelage.measure.quality import Quality
from tutelage.models import Model, set_resolution

BELOW, ABOVE = 1, 3  # steps from the own resolution
STEP = 7  # of which the own resolution has so many
UNITS = (32, 16, 8, 4, 2, 1)  # pixels that strides and windows divide
LEAST = 16  # pixels
IMAGES = 1000  # of val: the differences sought are points, not tenths


@dataclass(frozen=True)
class Probe:
    """A network's figures on val at one resolution; None where it cannot work at it."""

    resolution: int
    quality: Quality | None

    def record(self, who: str) -> dict[str, Any]:
        """For preflight.json."""
        figures = {"top1": self.quality.top1, "nll": self.quality.nll} if self.quality else {}
        return {"who": who, "resolution": self.resolution, "top1": None, "nll": None, **figures}


def neighbours(own: int) -> list[int]:
    """The own resolution in pixels and a few around it, ascending: multiples of what divides it."""
    unit = next(unit for unit in UNITS if own % unit == 0 and (unit <= own / STEP or unit == 1))
    step = max(1, round(own / STEP / unit)) * unit
    return [r for r in (own + k * step for k in range(-BELOW, ABOVE + 1)) if r >= LEAST or r == own]


def at(model: Model, resolution: int) -> Model:
    """A copy of a model at another resolution; the model itself stays as it is.

    Position embeddings are resampled from the original's, so that a chain of changes loses nothing.

    Raises:
        TutelageError: the architecture cannot work at it.
    """
    if resolution == model.input.height:
        return model
    return set_resolution(replace(model, module=copy.deepcopy(model.module)), resolution)


def probe(model: Model, weigh: Callable[[Model], Quality]) -> list[Probe]:
    """A model's figures at its own and a few neighbouring resolutions.

    Args:
        model: as it is to be used.
        weigh: figures on val of a model at its `input`'s resolution.
    """
    return [
        Probe(resolution, _weighed(model, resolution, weigh)) for resolution in neighbours(model.input.height)
    ]


def best(probes: Sequence[Probe], metric: str) -> int:
    """The resolution with the highest `top1` or the lowest `nll`; equal figures go to the smaller one."""
    merits = {p.resolution: _merit(p.quality, metric) for p in probes if p.quality}
    return max(sorted(merits), key=merits.__getitem__)


def sample(part: Part) -> Part:
    """At most 1,000 images, spread over all classes though they lie sorted by class."""
    places = np.linspace(0, len(part) - 1, min(IMAGES, len(part))).round().astype(int)
    return replace(part, indices=part.indices[places])


def _weighed(model: Model, resolution: int, weigh: Callable[[Model], Quality]) -> Quality | None:
    try:
        return weigh(at(model, resolution))
    except (TutelageError, RuntimeError, AssertionError, ValueError):
        # windows or strides that do not fit: the shapes clash in the forward pass at the latest
        if resolution == model.input.height:
            raise
        return None


def _merit(quality: Quality, metric: str) -> tuple[float, float]:
    return (quality.top1, -quality.nll) if metric == "top1" else (-quality.nll, quality.top1)
