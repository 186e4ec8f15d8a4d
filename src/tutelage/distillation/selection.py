"""Model selection: candidates are evaluated on val, and the starting student is one of them.

Interpolating between starting and trained weights is WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models"); the greedy soup is that of Wortsman et al. 2022, "Model soups". Since the start is a
candidate, the kept student's val figure is never below the start's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.core.recipe import SelectionRecipe
from tutelage.distillation.checkpoint import State
from tutelage.distillation.two_heads import TwoHeads
from tutelage.evaluation.quality import merit

COARSE = (0.25, 0.5, 0.75)
FINE_STEP = 0.125
FINALISTS = 5  # beside the start, evaluated in full precision where all are screened in a faster one

SHARE = "share"

Evaluate = Callable[[State], dict[str, float]]
Recalibrate = Callable[[State], State]


@dataclass(frozen=True)
class Screening:
    """How all candidates are compared before the best are evaluated: faster, and less exact.

    Attributes:
        evaluate: returns the figures of a state on val.
        recalibrate: measures a state's BatchNorm statistics on fewer images.
    """

    evaluate: Evaluate
    recalibrate: Recalibrate


@dataclass(frozen=True)
class Work:
    """How often model selection does what takes time, at most.

    Attributes:
        evaluations: of a state on val.
        recalibrations: of a state's BatchNorm statistics.
        screened: further recalibrations, on the fewer images of a screening.
    """

    evaluations: int
    recalibrations: int
    screened: int = 0


@dataclass(frozen=True)
class Candidate:
    """One student that could be kept.

    Attributes:
        name: e.g. `ema@0.5`, half way from the start to the moving average.
        source: the trained state that it was made from.
        alpha: 0 is the start, 1 the trained state; None where the weights are not interpolated between them.
        val: figures on val: `top1` and `nll`, or `agreement` and `fidelity` where it has no labels.
        state: the weights.
        recalibrated: whether the BatchNorm statistics were measured again.
        share: of the teacher's head in the mixture with the labels' head, the best on val; None with one head.
        screened: whether its figures are those of the screening alone, so that it cannot be kept.
    """

    name: str
    source: str
    alpha: float | None
    val: dict[str, float]
    state: State
    recalibrated: bool = False
    share: float | None = None
    screened: bool = False


@dataclass(frozen=True)
class Choice:
    """All candidates, and the one that is kept."""

    metric: str
    kept: Candidate
    candidates: list[Candidate]

    def record(self) -> dict[str, Any]:
        """Return the content of candidates.json."""
        return {
            "metric": self.metric,
            "kept": self.kept.name,
            "candidates": [
                {
                    "name": c.name,
                    "source": c.source,
                    "alpha": c.alpha,
                    "recalibrated": c.recalibrated,
                    **({} if c.share is None else {SHARE: c.share}),
                    **({"screened": True} if c.screened else {}),
                    "val": {"top1": None, "nll": None}
                    | {name: _jsonable(value) for name, value in c.val.items()},
                    "kept": c is self.kept,
                }
                for c in self.candidates
            ],
        }


def choose(
    start: State,
    trained: dict[str, State],
    evaluate: Evaluate,
    recalibrate: Recalibrate,
    recipe: SelectionRecipe,
    two_heads: TwoHeads | None = None,
    screening: Screening | None = None,
) -> Choice:
    """Evaluate the start, the trained states, interpolations between them, and their soup; keep the best.

    All but the start are evaluated as they are and with recalibrated BatchNorm statistics: averages may need new ones,
    while near a start that was pretrained on more images the old ones are better.

    With `screening`, all candidates are made and ranked by its figures; the best of them then get statistics of
    `recalibrate`, and `evaluate` decides between them and the start, so that what holds of the kept candidate's figures
    against the start's holds as without it.

    Args:
        start: the weights before training.
        trained: states by name (`last`, `best`, `ema`).
        evaluate: returns the figures of a state on val; where it has two heads, those of the best mixture of both,
            whose `share` is among them.
        recalibrate: measures a state's BatchNorm statistics again; returns the same object where it has none.
        recipe: the metric, and which candidates are made.
        two_heads: of the trained states, but not of the start. Interpolations and averages are made of both heads, and
            each candidate is then folded into a state with one head.
        screening: None: all candidates are made by `recalibrate` and `evaluate`.
    """
    before = two_heads.doubled(start) if two_heads else start
    figures, statistics = evaluate, recalibrate
    if screening:
        figures, statistics = screening.evaluate, screening.recalibrate
    candidates = [Candidate("start", "start", 0.0, figures(start), before)]
    for name, state in distinct(trained).items():
        ends = _evaluated(name, name, 1.0, state, figures, statistics)
        candidates += ends
        if recipe.interpolate:
            candidates += _between(candidates[0], ends, figures, statistics, recipe.metric)
    if recipe.soup:
        whole = [c for c in candidates if c.alpha in (0.0, 1.0) and not c.recalibrated]
        candidates += _soup(whole, figures, statistics, recipe.metric)
    if screening:
        exact = replace(candidates[0], val=evaluate(start))
        candidates = [exact, *_with_finalists(candidates[1:], evaluate, recalibrate, recipe.metric)]
    if two_heads:
        candidates = [replace(c, state=two_heads.folded(c.state, c.share or 0.0)) for c in candidates]
    kept = best_of([c for c in candidates if not c.screened], recipe.metric)
    return Choice(recipe.metric, kept, candidates)


def count(states: int, recipe: SelectionRecipe, batchnorm: bool, screened: bool = False) -> Work:
    """Count how often `choose` evaluates and recalibrates at most.

    Args:
        states: number of different trained states.
        recipe: which candidates are made.
        batchnorm: whether the network has BatchNorm statistics that are measured again.
        screened: whether there is a screening before the finalists are evaluated.
    """
    points = len(COARSE) + 2 if recipe.interpolate else 0
    made = states * (1 + points + recipe.soup)
    evaluations, recalibrations = 1 + made * (1 + batchnorm), made * batchnorm
    if not screened:
        return Work(evaluations, recalibrations)
    return Work(evaluations + 1 + FINALISTS, min(FINALISTS, recalibrations), recalibrations)


def best_of(candidates: Sequence[Candidate], metric: str) -> Candidate:
    """Return the best candidate on val; of equal figures the one with the lower NLL, then the earlier one."""
    return max(candidates, key=lambda c: merit(c.val, metric))


def interpolate(start: State, trained: State, alpha: float) -> State:
    """Compute (1 - alpha) * start + alpha * trained; integer buffers are those of the trained state."""
    return {
        name: start[name].lerp(value, alpha) if value.is_floating_point() else value
        for name, value in trained.items()
    }


def average(states: Sequence[State]) -> State:
    """Compute the mean of several states; integer buffers are those of the last one."""
    mean = dict(states[0])
    for count, state in enumerate(states[1:], start=2):
        mean = interpolate(mean, state, 1 / count)
    return mean


def distinct(trained: dict[str, State]) -> dict[str, State]:
    """Leave out states that are copies of another one (the best epoch is often the last)."""
    kept: dict[str, State] = {}
    for name, state in trained.items():
        if state and not any(_same(state, other) for other in kept.values()):
            kept[name] = state
    return kept


def _same(one: State, other: State) -> bool:
    return all(tensor.equal(other[name]) for name, tensor in one.items())


def _evaluated(
    name: str, source: str, alpha: float | None, state: State, evaluate: Evaluate, recalibrate: Recalibrate
) -> list[Candidate]:
    """Make the candidates of a state: as it is and, where it has BatchNorm statistics, with these measured again."""

    def made(name: str, state: State, recalibrated: bool) -> Candidate:
        return _with_figures(Candidate(name, source, alpha, {}, state, recalibrated), evaluate)

    candidates = [made(name, state, False)]
    if (again := recalibrate(state)) is not state:
        candidates.append(made(f"{name}-recalibrated", again, True))
    return candidates


def _with_figures(candidate: Candidate, evaluate: Evaluate) -> Candidate:
    val = dict(evaluate(candidate.state))
    return replace(candidate, share=val.pop(SHARE, None), val=val)


def _with_finalists(
    candidates: Sequence[Candidate], evaluate: Evaluate, recalibrate: Recalibrate, metric: str
) -> list[Candidate]:
    """Evaluate the best candidates of a screening again; the others are marked as screened."""

    def exact(one: Candidate) -> Candidate:
        state = recalibrate(one.state) if one.recalibrated else one.state
        return _with_figures(replace(one, state=state), evaluate)

    ranked = sorted(candidates, key=lambda c: merit(c.val, metric), reverse=True)
    finalists = {id(candidate) for candidate in ranked[:FINALISTS]}
    return [exact(c) if id(c) in finalists else replace(c, screened=True) for c in candidates]


def _between(
    start: Candidate, ends: list[Candidate], evaluate: Evaluate, recalibrate: Recalibrate, metric: str
) -> list[Candidate]:
    """Interpolate on a coarse grid from start to trained, and at two finer points around the best one."""
    trained = ends[0]

    def at(alpha: float) -> list[Candidate]:
        state = interpolate(start.state, trained.state, alpha)
        return _evaluated(f"{trained.name}@{alpha:.3g}", trained.name, alpha, state, evaluate, recalibrate)

    grid = [candidate for alpha in COARSE for candidate in at(alpha)]
    best = best_of([start, *grid, *ends], metric)
    assert best.alpha is not None
    finer = [alpha for alpha in (best.alpha - FINE_STEP, best.alpha + FINE_STEP) if 0 < alpha < 1]
    return grid + [candidate for alpha in finer for candidate in at(alpha)]


def _soup(
    candidates: Sequence[Candidate], evaluate: Evaluate, recalibrate: Recalibrate, metric: str
) -> list[Candidate]:
    """Add candidates to an average, the best first, as long as the average does not get worse on val."""
    ranked = sorted(candidates, key=lambda c: merit(c.val, metric), reverse=True)
    ingredients, soup = [ranked[0]], ranked[0]
    for candidate in ranked[1:]:
        more = [*ingredients, candidate]
        source, state = "+".join(c.name for c in more), average([c.state for c in more])
        mixed = best_of(_evaluated("soup", source, None, state, evaluate, recalibrate), metric)
        if merit(mixed.val, metric) >= merit(soup.val, metric):
            ingredients, soup = more, mixed
    return [soup] if len(ingredients) > 1 else []


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None
