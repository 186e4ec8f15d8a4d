"""Which resolution a network is best at: often somewhat above the one it was trained at.

Random crops enlarge what is in them, so that training shows bigger objects than evaluation does (Touvron et
al. 2019, "Fixing the train-test resolution discrepancy").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.evaluation.quality import Quality, merit
from tutelage.models.source import Model

BELOW, ABOVE = 1, 3  # steps from the own resolution
STEP = 7  # of which the own resolution has so many
UNITS = (32, 16, 8, 4, 2, 1)  # pixels that strides and windows divide
LEAST = 16  # pixels
IMAGES = 1000  # of val: the differences sought are points, not tenths


def neighbours(own: int) -> list[int]:
    """The own resolution in pixels and a few around it, ascending: multiples of what divides it."""
    return [r for r in (own + k * _step(own) for k in range(-BELOW, ABOVE + 1)) if r >= LEAST or r == own]


def _step(own: int) -> int:
    unit = next(unit for unit in UNITS if own % unit == 0 and (unit <= own / STEP or unit == 1))
    return max(1, round(own / STEP / unit)) * unit


def reach(spec: InputSpec) -> InputSpec:
    """The input at the highest resolution that is probed: images have to be decoded as large."""
    return spec.at(max(neighbours(spec.height)))


def at(model: Model, resolution: int) -> Model:
    """A copy of a model at another resolution; the model itself stays as it is.

    Position embeddings are resampled from the original's, so that a chain of changes loses nothing.

    Raises:
        TutelageError: the architecture cannot work at it.
    """
    if resolution == model.input_spec.height:
        return model
    return model.copied().at(resolution)


def probe(model: Model, who: str, evaluate: Callable[[Model], Quality], metric: str) -> list[dict[str, Any]]:
    """A model's figures at its own and a few neighbouring resolutions, and on downwards while that is better.

    A checkpoint that does not say at which resolution it was trained is used at its architecture's, which may be
    far too high.

    Args:
        model: as it is to be used.
        who: what it is called in the records.
        evaluate: figures on val of a model at its `input_spec`'s resolution.
        metric: `top1` or `nll`.

    Returns:
        `who`, `resolution`, `top1` and `nll` each, ascending; figures are None where the network cannot work.
    """
    own = model.input_spec.height

    def at_resolution(resolution: int) -> dict[str, Any]:
        quality = _evaluated(model, resolution, evaluate)
        figures = {"top1": quality.top1, "nll": quality.nll} if quality else {"top1": None, "nll": None}
        return {"who": who, "resolution": resolution, **figures}

    found = [at_resolution(resolution) for resolution in neighbours(own)]
    while (lowest := found[0]["resolution"]) == best(found, who, metric) and lowest - _step(own) >= LEAST:
        found.insert(0, at_resolution(lowest - _step(own)))
    return found


def best(records: Sequence[Mapping[str, Any]], who: str, metric: str) -> int:
    """The resolution with the highest `top1` or the lowest `nll`; equal figures go to the smaller one."""
    able = [r for r in records if r["who"] == who and r["top1"] is not None]
    merits = {int(r["resolution"]): merit(r, metric) for r in able}
    return max(sorted(merits), key=merits.__getitem__)


def _evaluated(model: Model, resolution: int, evaluate: Callable[[Model], Quality]) -> Quality | None:
    try:
        return evaluate(at(model, resolution))
    except (TutelageError, RuntimeError, AssertionError, ValueError):
        # windows or strides that do not fit: the shapes clash in the forward pass at the latest
        if resolution == model.input_spec.height:
            raise
        return None
