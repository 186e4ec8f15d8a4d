"""The variants of a study over several seeds: means, spread and pooled differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np

from tutelage.evaluation.paired import pooled
from tutelage.evaluation.roles import Role
from tutelage.pipeline.study.text import differences, extent, figure
from tutelage.pipeline.study.trials import SEARCHED, Ranked


@dataclass(frozen=True)
class Gap:
    """The mean difference in top-1 over seeds, in points.

    Attributes:
        difference: the mean.
        low, high: its 95% interval over images, each resampled with all of its seeds.
        sd: of the difference, between seeds.
        seeds: number of them.
    """

    difference: float
    low: float
    high: float
    sd: float
    seeds: int


@dataclass(frozen=True)
class Variant:
    """The finished trials of a variant, one for each seed.

    Attributes:
        name: of the variant.
        trials: by rising seed.
        start, control, best, named: the student compared with these; None where there is nothing to compare with.
    """

    name: str
    trials: tuple[Ranked, ...]
    start: Gap | None = None
    control: Gap | None = None
    best: Gap | None = None
    named: Gap | None = None

    def val(self, metric: str) -> float:
        """The mean figure of the kept students on val."""
        return mean(one.val[metric] for one in self.trials)

    @property
    def test(self) -> str:
        """The mean top-1 of the students on test in %, and its standard deviation between seeds."""
        return _mean_and_sd([one.test_top1 for one in self.trials])

    @property
    def nll(self) -> float:
        """The mean NLL of the students on test."""
        return mean(one.test[Role.DISTILLED]["nll"] for one in self.trials)

    def record(self, metric: str) -> dict[str, Any]:
        """Return what study.json has of it."""
        pairs = {"start": self.start, "control": self.control, "best": self.best, "named": self.named}
        return {
            "name": self.name,
            "seeds": [one.seed for one in self.trials],
            "val": self.val(metric),
            "test_top1": [one.test_top1 for one in self.trials],
            "test_nll": [one.test[Role.DISTILLED]["nll"] for one in self.trials],
            "against": {role: asdict(gap) if gap else None for role, gap in pairs.items()},
        }


def by_variant(done: Sequence[Ranked], metric: str, against: str | None = None) -> list[Variant]:
    """Rank the variants of a study by their mean on val; those with fewer finished seeds come last.

    Args:
        done: the finished trials.
        metric: `top1` or `nll`.
        against: name of the variant that all are held against.

    Returns:
        The variants, without sampled trials; an empty list where none has more than one finished seed.
    """
    groups: dict[str, list[Ranked]] = {}
    for one in done:
        if one.entry.name != SEARCHED:  # each of them has settings of its own
            groups.setdefault(one.entry.variant, []).append(one)
    if max(map(len, groups.values()), default=0) < 2:
        return []
    found = [Variant(name, tuple(sorted(trials, key=lambda t: t.seed))) for name, trials in groups.items()]
    sign = -1 if metric == "top1" else 1
    found.sort(key=lambda one: (-len(one.trials), sign * one.val(metric), one.trials[0].entry.number))
    best, other = found[0], next((one for one in found if one.name == against), None)
    pretrained = next((one for one in found if not one.trials[0].from_scratch), None)
    return [
        replace(
            one,
            start=gap(one, (pretrained or one) if one.trials[0].from_scratch else one, Role.START),
            control=gap(one, one, Role.CONTROL),
            best=gap(one, best, Role.DISTILLED) if one is not best else None,
            named=gap(one, other, Role.DISTILLED) if other and one is not other else None,
        )
        for one in found
    ]


def gap(new: Variant, old: Variant, role: str) -> Gap | None:
    """Compare students with a model of another variant's trials, seed by seed, over the seeds that both have.

    Returns:
        None where they share no seed, or where a trial lacks that model or has other images.
    """
    theirs = {one.seed: one for one in old.trials}
    both = [(one, theirs[one.seed]) for one in new.trials if one.seed in theirs]
    if not both:
        return None
    ids = both[0][0].top_class.ids
    tops = [top for one, other in both for top in (one.top_class, other.top_class)]
    if any(role not in other.top_class.by_role for _, other in both) or not all(
        top.ids is ids or np.array_equal(top.ids, ids) for top in tops
    ):
        return None
    ours = np.stack([_right(one, Role.DISTILLED) for one, _ in both])
    others = np.stack([_right(other, role) for _, other in both])
    return Gap(**pooled(ours, others), seeds=len(both))


def columns(
    variants: Sequence[Variant], metric: str, against: str | None, every: bool
) -> dict[str, list[str]]:
    """Return all columns of the table of the variants as text; `every` is as in `Ranking.columns`."""
    return {
        "Variant": [one.name for one in variants],
        "Seeds": [str(len(one.trials)) for one in variants],
        "Val": [figure(one.val(metric), metric) for one in variants],
        "Test": [one.test for one in variants],
        "NLL": [f"{one.nll:.3f}" for one in variants],
        **differences(variants, against, every),
    }


def spread(figures: Sequence[Mapping[str, float]]) -> str:
    """Write the mean top-1 of several seeds in %, its standard deviation, and the mean NLL."""
    if all(one == figures[0] for one in figures):  # such as a start, which no seed changes
        return extent(figures)
    top1, nll = ([one[name] for one in figures] for name in ("top1", "nll"))
    return f"{_mean_and_sd(top1)} ({mean(nll):.3f})"


def _mean_and_sd(each: Sequence[float]) -> str:
    return f"{mean(each):.2f}" + (f" ± {stdev(each):.2f}" if len(each) > 1 else "")


def _right(one: Ranked, role: str) -> np.ndarray:
    """Return (N,) bool over the labelled test images, whether a model is right."""
    top = one.top_class
    labelled = top.labels >= 0
    right: np.ndarray = top.by_role[role][labelled] == top.labels[labelled]
    return right
