"""The resolution at which a network is best, often somewhat above that of its training.

Random crops enlarge their content, so that objects are larger in training than in evaluation (Touvron et al.
2019, "Fixing the train-test resolution discrepancy").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.evaluation.quality import Quality, merit
from tutelage.models.source import Model

BELOW, ABOVE = 1, 3  # steps from the model's own resolution
STEPS = 7  # a step is about the own resolution divided by this
UNITS = (32, 16, 8, 4, 2, 1)  # pixels by which strides and windows divide an image
LEAST = 16  # pixels
IMAGES = 1000  # of val: enough to find differences of whole points


def neighbours(own: int) -> list[int]:
    """Return a resolution in pixels and a few around it, ascending; all are multiples of a unit that divides it."""
    return [r for r in (own + k * _step(own) for k in range(-BELOW, ABOVE + 1)) if r >= LEAST or r == own]


def _step(own: int) -> int:
    unit = next(unit for unit in UNITS if own % unit == 0 and (unit <= own / STEPS or unit == 1))
    return max(1, round(own / STEPS / unit)) * unit


def reach(spec: InputSpec) -> InputSpec:
    """Return the input at the highest resolution that is probed, at which images have to be decoded."""
    return spec.at(max(neighbours(spec.height)))


def at(model: Model, resolution: int) -> Model:
    """Copy a model to another square resolution in pixels; the model itself stays as it is.

    Position embeddings are resampled from the original model's, so that nothing is lost over several changes.

    Raises:
        TutelageError: the architecture does not work at this resolution.
    """
    if resolution == model.input_spec.height:
        return model
    return model.copied().at(resolution)


def probe(model: Model, name: str, evaluate: Callable[[Model], Quality], metric: str) -> list[dict[str, Any]]:
    """Evaluate a model at its own and a few neighbouring resolutions, and at lower ones while these are better.

    A checkpoint that does not name the resolution of its training is used at its architecture's default, which may be
    far too high.

    Args:
        model: at its own resolution.
        name: name of the model in the records.
        evaluate: returns the figures on val of a model at its `input_spec`'s resolution.
        metric: `top1` or `nll`.

    Returns:
        Records with `who`, `resolution`, `top1` and `nll`, ascending; figures are None where the network does not work.
    """
    own = model.input_spec.height

    def at_resolution(resolution: int) -> dict[str, Any]:
        quality = _evaluated(model, resolution, evaluate)
        figures = {"top1": quality.top1, "nll": quality.nll} if quality else {"top1": None, "nll": None}
        return {"who": name, "resolution": resolution, **figures}

    found = [at_resolution(resolution) for resolution in neighbours(own)]
    while (lowest := found[0]["resolution"]) == best(found, name, metric) and lowest - _step(own) >= LEAST:
        found.insert(0, at_resolution(lowest - _step(own)))
    return found


def best(records: Sequence[Mapping[str, Any]], name: str, metric: str) -> int:
    """Return a model's resolution with the highest `top1` or the lowest `nll`; of equal ones the smallest."""
    working = [r for r in records if r["who"] == name and r["top1"] is not None]
    merits = {int(r["resolution"]): merit(r, metric) for r in working}
    return max(sorted(merits), key=merits.__getitem__)


def _evaluated(model: Model, resolution: int, evaluate: Callable[[Model], Quality]) -> Quality | None:
    try:
        return evaluate(at(model, resolution))
    except (TutelageError, RuntimeError, AssertionError, ValueError):
        # windows or strides that do not fit raise these, at the latest in the forward pass
        if resolution == model.input_spec.height:
            raise
        return None
