"""Findings that keep a run from being called good: what its comparisons rest on does not hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tutelage.core.recipe import FitRecipe
from tutelage.evaluation.quality import BINS
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import OPPONENTS
from tutelage.pipeline.diagnose.figures import Figures, Finding, Try, evidence_of, in_parts, over_the_last
from tutelage.pipeline.diagnose.outcome import GAP, SURE, seen_val

BADLY_CALIBRATED = 15.0  # percent of ECE
BY_CHANCE = (
    1.96  # standard errors between two parts of the data that 95% of calibrated comparisons stay within
)
UNTRAINED = (
    1e-3  # nats; a start that is no further above a guess has a new head at zero, which claims nothing
)
IMPROVING = 0.01  # share by which the NLL on val still falls
SUBJECTS = {Role.DISTILLED: "the distilled student", **OPPONENTS, Role.START: "the starting student"}
FITS = {"teacher-fit": "the teacher", "head-fit": "the student's head"}


def below_probe(figures: Figures) -> Iterator[Finding]:
    """Control or student are significantly worse than the linear probe of the student's features."""
    for role, stage in ((Role.CONTROL, "control"), (Role.DISTILLED, "distill")):
        worse = figures.worse(role, figures.probe) if _has_probe(figures, role) else {}
        if not worse:
            continue
        yield Finding(
            f"{role} below the linear probe",
            "problem",
            f"{_start(SUBJECTS[role])} is significantly worse than the linear probe of the student's pretrained "
            f"features ({in_parts(worse)}): the training has damaged these features, or was too short to "
            "use them.",
            evidence_of(next(iter(worse.values()))),
            (
                Try(
                    "train.lr",
                    f"{figures.recipe.train.lr / 3:.0e}",
                    "smaller steps keep more of the features",
                ),
                Try(
                    "train.epochs",
                    str(2 * figures.recipe.train.epochs),
                    "a longer training can get above the probe",
                ),
                Try("train.frozen_batchnorm", "true", "keep the start's BatchNorm statistics"),
            ),
            stage,
            reservation=f"{SUBJECTS[role]} is below the linear probe",
        )


def not_shown(figures: Figures) -> Iterator[Finding]:
    """A model is lower than one that it should be above, but not significantly."""
    pairs = [(Role.TEACHER, str(Role.CONTROL))]
    if figures.is_better_than(Role.START):  # else there is no gain, which is told elsewhere
        pairs.append((Role.DISTILLED, str(Role.CONTROL)))
    pairs += [(role, figures.probe) for role in (Role.CONTROL, Role.DISTILLED) if _has_probe(figures, role)]
    for new, old in pairs:
        lower = figures.lower(new, old)
        if not lower:
            continue
        yield Finding(
            f"{new} not shown to be above the {old}",
            "note",
            f"{_start(SUBJECTS[new])} is not shown to be better than {SUBJECTS[Role(old)]}: it has a lower top-1 "
            f"({in_parts(lower)}). The difference is not significant, which does not show that there is none.",
            evidence_of(next(iter(lower.values()))),
            (Try("data.test", "more images", "the interval becomes narrower with the root of their number"),),
            reservation=f"{SUBJECTS[new]} is not shown to be above {SUBJECTS[Role(old)]}",
        )


def no_better_than_guessing(figures: Figures) -> Iterator[Finding]:
    """The NLL of a model on test is no lower than that of the same probability for each class."""
    guess = math.log(figures.classes)
    found = {role: row["nll"] for role, row in _trained(figures) if (row.get("nll") or 0.0) >= guess}
    if found.get(Role.START, math.inf) < guess + UNTRAINED:
        del found[Role.START]
    if not found:
        return
    named = " and ".join(f"{SUBJECTS[role]} ({nll:.2f})" for role, nll in found.items())
    yield Finding(
        "NLL no better than guessing",
        "problem",
        f"On test the NLL of {named} is no lower than that of the same probability for each class "
        f"(ln {figures.classes} = {guess:.2f}): the mistakes are made with great confidence, "
        "and the probabilities cannot be used.",
        {"guess_nll": guess, **{f"{role}_nll": nll for role, nll in found.items()}},
        (
            Try("selection.metric", "nll", "the weights with the best probabilities on val are kept"),
            Try(
                "train.epochs",
                str(2 * figures.recipe.train.epochs),
                "a short training does not repair a bad start",
            ),
        ),
        reservation=f"the NLL of {SUBJECTS[next(iter(found))]} is no better than guessing",
    )


def badly_calibrated(figures: Figures) -> Iterator[Finding]:
    """The expected calibration error of a model on test is above 15%, and more than few images explain.

    That of the student is the one with the temperature that its deployed files have.
    """
    after = (figures.comparison.get("calibration") or {}).get("after")
    errors = {
        role: after["ece"] if after and role == Role.DISTILLED else row.get("ece")
        for role, row in _trained(figures)
    }
    found = {
        role: error
        for role, error in errors.items()
        if error is not None and error > max(BADLY_CALIBRATED, 2 * _ece_by_chance(figures.row(role)["n"]))
    }
    if not found:
        return
    named = " and ".join(f"{SUBJECTS[role]} ({ece:.1f}%)" for role, ece in found.items())
    yield Finding(
        "badly calibrated",
        "problem",
        f"The expected calibration error on test is above {BADLY_CALIBRATED:.0f}% for {named}: confidence and "
        "accuracy are far apart, so that these probabilities cannot be used, and a teacher's targets mislead.",
        {f"{role}_ece": ece for role, ece in found.items()},
        (
            Try("selection.metric", "nll", "the weights with the best probabilities on val are kept"),
            Try("train.epochs", str(2 * figures.recipe.train.epochs), "a longer training from a bad start"),
        ),
        reservation=f"{SUBJECTS[next(iter(found))]} is badly calibrated",
    )


def val_and_test_apart(figures: Figures) -> Iterator[Finding]:
    """The same model has different accuracies on val and on test, by more than their sizes explain."""
    val = figures.comparison.get("val") or {}
    if not val or any(seen_val(figures)):
        return
    apart = {}
    for role, row in _trained(figures):
        if role in val["top1"] and row.get("n"):
            gap, error = (
                val["top1"][role] - row["top1"],
                _error(val["top1"][role], val["n"], row["top1"], row["n"]),
            )
            if abs(gap) >= GAP and abs(gap) > BY_CHANCE * error:
                apart[role] = (gap, error)
    if not apart:
        return
    role = max(apart, key=lambda r: abs(apart[r][0]) / apart[r][1])
    gap, error = apart[role]
    row = figures.row(role)
    yield Finding(
        "val and test apart",
        "problem" if abs(gap) > SURE * error else "note",
        f"{_start(SUBJECTS[role])} has {val['top1'][role]:.2f}% top-1 on val ({val['n']:,} images), but "
        f"{row['top1']:.2f}% on test ({row['n']:,}): {gap:+.2f} points, where chance explains up to "
        f"{BY_CHANCE * error:.2f}. The two parts have different images, so that the best on val may not be the best on "
        "test.",
        {"role": str(role), "gap": gap, "standard_error": error, "models": [str(r) for r in apart]},
        (
            Try("data.val_fraction", "0.2", "more images to select models on"),
            Try(
                "data.split_seed",
                str(figures.recipe.data.split_seed + 1),
                "shows whether another split differs as well",
            ),
        ),
        reservation="val and test disagree about the same model",
    )


def unfinished_fit(figures: Figures) -> Iterator[Finding]:
    """A fit of a teacher or of the student's head was still improving on val when it ended."""
    for stage in dict.fromkeys(row["stage"] for row in figures.rows):
        kind = next((kind for kind in FITS if stage.startswith(kind)), None)
        rows = figures.stage(stage)
        if kind is None or len(rows) < 2:
            continue
        if None in [row["val"]["nll"] for row in rows]:  # it was not finite
            continue
        back = max(1, len(rows) // 4)
        before, last = rows[-1 - back]["val"], rows[-1]["val"]
        gain, fall = last["top1"] - before["top1"], 1 - last["nll"] / before["nll"] if before["nll"] else 0.0
        best = all(last["top1"] >= r["val"]["top1"] and last["nll"] <= r["val"]["nll"] for r in rows)
        if not best or gain <= figures.still or fall < IMPROVING:
            continue
        recipe = figures.recipe
        keys = {"teacher-fit": ("teacher.fit", recipe.teacher.fit)}
        key, fit = keys.get(kind, ("student.head_fit", recipe.student.head_fit))
        longer = str(2 * len(rows))
        change = (f"{key}.epochs", longer) if isinstance(fit, FitRecipe) else (key, f"{{epochs: {longer}}}")
        yield Finding(
            "fit ended too early",
            "note",
            f"The fit of {FITS[kind]} was still improving when it ended: {over_the_last(back, len(rows))}, "
            f"val top-1 rose from {before['top1']:.2f}% to {last['top1']:.2f}% and NLL fell by {100 * fall:.0f}%. "
            "Comparisons with it favour the models that were trained for longer.",
            {"top1_gain": gain, "nll_fall_percent": 100 * fall, "epochs": len(rows)},
            (Try(*change, "twice as many epochs"),),
            stage,
            rows[-1]["epoch"],
            reservation=f"the fit of {FITS[kind]} was still improving when it ended",
        )


def _has_probe(figures: Figures, role: str) -> bool:
    """Whether a role can be compared with a probe; the student's comparison with its start is told elsewhere."""
    return bool(figures.probe) and not (role == Role.DISTILLED and figures.probe == Role.START)


def _trained(figures: Figures) -> Iterator[tuple[Role, Mapping[str, Any]]]:
    """The rows of the models that were trained on this data: a start with random weights has no figures to judge."""
    for role in (Role.TEACHER, Role.START, Role.CONTROL, Role.DISTILLED):
        row = figures.row(role)
        if row and not (role == Role.START and figures.recipe.random_start):
            yield role, row


def _ece_by_chance(n: int) -> float:
    """An upper bound, in percent, of the ECE that a calibrated model has by chance on n images.

    In a bin of m images, the mean distance of the accuracy from its expectation is at most 0.8 * 0.5 / sqrt(m); over
    all bins, weighted by their images, that is at most 0.4 * sqrt(bins / n) by Cauchy and Schwarz's inequality.
    """
    return 40 * math.sqrt(BINS / n)


def _error(one: float, n: int, other: float, m: int) -> float:
    """Standard error, in points, of the difference between two accuracies of one model on n and on m images."""
    pooled = (one * n + other * m) / (n + m) / 100
    return 100 * math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def _start(words: str) -> str:
    return words[:1].upper() + words[1:]
