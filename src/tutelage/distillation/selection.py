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
CALIBRATED, ERROR = (
    "calibrated_nll",
    "top1_error",
)  # further figures on val; the error is a standard error in points

Evaluate = Callable[[State], dict[str, float]]
Recalibrate = Callable[[State], State]


@dataclass(frozen=True)
class Screening:
    """How all candidates are compared first: faster, and less exact.

    Attributes:
        recalibrate: measures a state's BatchNorm statistics on fewer images.
        evaluate: returns the figures of a state on val in a faster precision; None: there is none, and only the best
            candidate is recalibrated on all images.
    """

    recalibrate: Recalibrate
    evaluate: Evaluate | None = None


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

    With a `screening` in a faster precision, all candidates are made and ranked by its figures; the best of them then
    get statistics of `recalibrate`, and `evaluate` decides between them and the start, so that what holds of the kept
    candidate's figures against the start's holds as without it. With one in the same precision, the best candidate
    gets statistics of `recalibrate` where it is not worse with them.

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
        figures, statistics = screening.evaluate or evaluate, screening.recalibrate
    first = Candidate("start", "start", 0.0, figures(start), before)
    candidates = [first]
    ends = distinct(trained)
    for name, state in ends.items():
        candidates += _evaluated(name, name, 1.0, state, figures, statistics)
        if recipe.interpolate:
            candidates += _between(before, name, state, COARSE, figures, statistics)
    if recipe.interpolate and ends:
        name, finer = _around_best(candidates, recipe.metric)
        candidates += _between(before, name, ends[name], finer, figures, statistics)
    if recipe.soup:
        whole = [c for c in candidates if c.alpha in (0.0, 1.0) and not c.recalibrated]
        candidates += _soup(whole, figures, statistics, recipe.metric)
    if screening and screening.evaluate:
        exact = replace(first, val=evaluate(start))
        candidates = [exact, *_with_finalists(candidates, evaluate, recalibrate, recipe.metric)]
    elif screening:
        candidates = _with_best_recalibrated(candidates, evaluate, recalibrate, recipe.metric)
    if two_heads:
        candidates = [replace(c, state=two_heads.folded(c.state, c.share or 0.0)) for c in candidates]
    kept = in_order([c for c in candidates if not c.screened], recipe.metric, candidates[0])[0]
    return Choice(recipe.metric, kept, candidates)


def count(states: int, recipe: SelectionRecipe, batchnorm: bool, faster: bool = False) -> Work:
    """Count how often `choose` evaluates and recalibrates at most, with a screening where one saves time.

    Args:
        states: number of different trained states.
        recipe: which candidates are made.
        batchnorm: whether the network has BatchNorm statistics that are measured again.
        faster: whether candidates are screened in a faster precision.
    """
    coarse, finer = (len(COARSE), 2) if recipe.interpolate else (0, 0)
    made = states * (1 + coarse + recipe.soup) + finer
    evaluations, recalibrations = 1 + made * (1 + batchnorm), made * batchnorm
    if faster:
        return Work(evaluations + 1 + FINALISTS, min(FINALISTS, recalibrations), recalibrations)
    return Work(evaluations + batchnorm, int(batchnorm), recalibrations)


def best_of(candidates: Sequence[Candidate], metric: str) -> Candidate:
    """Return the best candidate on val; of equal figures the one with the lower NLL, then the earlier one."""
    return _ranked(candidates, metric)[0]


def _ranked(candidates: Sequence[Candidate], metric: str) -> list[Candidate]:
    return sorted(candidates, key=lambda c: merit(c.val, metric), reverse=True)


def in_order(candidates: Sequence[Candidate], metric: str, start: Candidate) -> list[Candidate]:
    """Sort candidates; the one to keep comes first.

    The best top-1 of many candidates on few images is often the luckiest one. So of those whose top-1 is within one
    standard error of the best (the rule of Breiman et al. 1984, "Classification and regression trees") and not below
    the start's, the first is the one with the lowest calibrated NLL, which also sees how close each answer is.

    Args:
        candidates: with figures on val.
        metric: of the choice; by NLL and fidelity they are ranked as `best_of` does.
        start: the starting student.
    """
    ranked = _ranked(candidates, metric)
    if metric != "top1" or not all({CALIBRATED, ERROR} <= c.val.keys() for c in (start, *ranked)):
        return ranked
    least = max(ranked[0].val["top1"] - ranked[0].val[ERROR], start.val["top1"])
    near = [c for c in ranked if c.val["top1"] >= least]
    others = [c for c in ranked if not c.val["top1"] >= least]  # NaN, too
    return sorted(near, key=lambda c: _or_worst(c.val[CALIBRATED])) + others


def _or_worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


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
    """Evaluate the best candidates of a screening beside the start again; the others are marked as screened."""
    start, *others = candidates
    finalists = {id(candidate) for candidate in in_order(others, metric, start)[:FINALISTS]}
    return [
        _exact(c, evaluate, recalibrate) if id(c) in finalists else replace(c, screened=True) for c in others
    ]


def _with_best_recalibrated(
    candidates: Sequence[Candidate], evaluate: Evaluate, recalibrate: Recalibrate, metric: str
) -> list[Candidate]:
    """Recalibrate the best candidate on all images, where its statistics are of fewer, unless it is worse then."""
    best = in_order(candidates, metric, candidates[0])[0]
    if not best.recalibrated:
        return list(candidates)
    better = in_order([_exact(best, evaluate, recalibrate), best], metric, candidates[0])[0]
    return [better if c is best else c for c in candidates]


def _exact(candidate: Candidate, evaluate: Evaluate, recalibrate: Recalibrate) -> Candidate:
    state = recalibrate(candidate.state) if candidate.recalibrated else candidate.state
    return _with_figures(replace(candidate, state=state), evaluate)


def _between(
    start: State,
    name: str,
    trained: State,
    alphas: Sequence[float],
    evaluate: Evaluate,
    recalibrate: Recalibrate,
) -> list[Candidate]:
    """Make candidates between the start and a trained state."""
    return [
        candidate
        for alpha in alphas
        for candidate in _evaluated(
            f"{name}@{alpha:.3g}", name, alpha, interpolate(start, trained, alpha), evaluate, recalibrate
        )
    ]


def _around_best(candidates: Sequence[Candidate], metric: str) -> tuple[str, list[float]]:
    """Return the trained state of the best candidate so far, and the finer points beside it: next to the start where
    that is the best.
    """
    nearest = best_of(candidates[1:], metric)
    best = best_of(candidates, metric)
    alpha = best.alpha
    assert alpha is not None  # the soup is made later
    return nearest.source, [at for at in (alpha - FINE_STEP, alpha + FINE_STEP) if 0 < at < 1]


def _soup(
    candidates: Sequence[Candidate], evaluate: Evaluate, recalibrate: Recalibrate, metric: str
) -> list[Candidate]:
    """Add candidates to an average, the best first, as long as the average does not get worse on val."""
    ranked = _ranked(candidates, metric)
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
