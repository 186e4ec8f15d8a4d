"""Findings about the result, on val and on test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tutelage.evaluation.flips import by_class
from tutelage.evaluation.paired import Paired
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import ALPHA, OPPONENTS, outcome
from tutelage.pipeline.diagnose.figures import Figures, Finding, Try, evidence_of, in_parts, interval

GAP = 3.0  # points that val is easier than test
SURE = 3.0  # standard errors; val and test are drawn once a run, and a false alarm costs trust
NAMED = 5  # classes named in a sentence


def seen_val(figures: Figures) -> Iterator[Finding]:
    """The start is far better on val than on test: pretraining has seen val's images, or val is easier."""
    val, test = figures.start_val(), figures.row(Role.START)
    n = (figures.preflight.get("val") or {}).get("n")
    if not n or not test.get("n"):
        return
    gap = val["top1"] - test["top1"]
    pooled = (val["top1"] * n + test["top1"] * test["n"]) / (n + test["n"]) / 100
    error = 100 * math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / test["n"]))
    if gap < GAP or gap < SURE * error:
        return
    yield Finding(
        "val seen in pretraining",
        "problem",
        f"The starting student has {val['top1']:.2f}% top-1 on val, but {test['top1']:.2f}% on test: its pretraining "
        "has probably seen val's images, or val is easier than test. Training then looks harmful on val, so that model "
        "selection favours the start.",
        {"start_val_top1": val["top1"], "start_test_top1": test["top1"], "gap": gap, "standard_error": error}
        | _gap_of_kept(figures, test),
        (
            Try("data.val", "images that pretraining has not seen", "models are selected on val"),
            Try("selection.metric", "nll", "NLL still changes where top-1 does not"),
        ),
    )


def misled_choice(figures: Figures) -> Iterator[Finding]:
    """The student was selected on val, but is significantly worse than its start on test."""
    pair = figures.against(Role.DISTILLED, Role.START)
    if pair is None or outcome(pair) != "worse":
        return
    n = (figures.preflight.get("val") or {}).get("n")
    yield Finding(
        "worse on test than on val",
        "problem",
        f"The kept student ({figures.candidates['kept']}) is not worse than its start on val, but it is on test "
        f"({interval(pair)}): val is too small, or its images differ from those of test.",
        {"val_n": n, **evidence_of(pair)},
        (
            Try("data.val_fraction", "0.2", "more images to select models on"),
            Try("selection.metric", "nll", "NLL is less noisy than top-1"),
        ),
    )


def harmful_teacher(figures: Figures) -> Iterator[Finding]:
    """The labels-only control is significantly better than the distilled student, on test or on val."""
    worse = figures.worse(Role.DISTILLED, Role.CONTROL)
    if not worse:
        return
    yield Finding(
        "the teacher does harm",
        "problem",
        f"The distilled student is significantly worse than the labels-only control ({in_parts(worse)}): learning "
        "from this teacher, as configured, does harm.",
        evidence_of(next(iter(worse.values()))),
        (
            Try("loss.label_weight", "1.0", "the labels helped more than the teacher"),
            Try("loss.temperature", "1", "the teacher's own probabilities as targets"),
            Try("teacher.resolution", "best", "the teacher may be better at another resolution"),
        ),
        reservation="the distilled student is below the labels-only control",
    )


def gain(figures: Figures) -> Iterator[Finding]:
    """What distillation gained, where it is significant."""
    control, start = (figures.against(Role.DISTILLED, role) for role in (Role.CONTROL, Role.START))
    if control is not None and outcome(control) == "better":
        yield Finding(
            "gain from the teacher",
            "good",
            f"The distilled student is significantly better than the labels-only control ({interval(control)}): "
            "this is what the teacher added.",
            evidence_of(control),
        )
    if start is not None and outcome(start) == "better" and "start" in figures.opponents:
        yield Finding(
            "gain over the start",
            "good",
            f"The kept student is significantly better than its start ({interval(start)}).",
            evidence_of(start),
        )


def forgetting(figures: Figures) -> Iterator[Finding]:
    """Training lost more correct answers of the start than it gained, or lost whole classes."""
    if not figures.able:
        return
    lost = figures.training("against_start")
    if lost:
        trained = Paired(**{name: lost[name] for name in Paired.__dataclass_fields__})
        if outcome(trained) == "worse":
            what = f"The trained student ({lost['candidate']}) has forgotten what its start knew, on val"
            yield _forgotten(figures, what, trained, lost["classes"], "val")
    pair = figures.against(Role.DISTILLED, Role.START)
    if pair is None or not pair.negative_flips:
        return
    predictions = figures.predictions
    kept, start = (predictions.roles[role].first for role in (Role.DISTILLED, Role.START))
    classes = by_class(kept, start, predictions.labels)
    surely = [c for c in classes if c["p"] < ALPHA / len(classes)]
    if surely and outcome(pair) != "worse":
        named = [{**c, "class": predictions.classes[c["class"]]} for c in surely]
        yield _forgotten(figures, "The kept student has lost some classes on test", pair, named, "test")


def unexplained(figures: Figures, found: Sequence[Finding]) -> list[Finding]:
    """There is no significant gain, and no other finding explains it."""
    role = next((role for role in figures.opponents if role != Role.TEACHER), None)
    pair = figures.against(Role.DISTILLED, role) if role else None
    if not role or not pair or outcome(pair) == "better" or any(f.severity == "problem" for f in found):
        return []
    kept = figures.candidates["kept"]
    return [
        Finding(
            "no gain",
            "note",
            f"No significant gain over {OPPONENTS[role]} is shown ({interval(pair)}; kept: {kept}), and the figures "
            "show none of the known causes.",
            {"kept": kept, **evidence_of(pair)},
            (
                Try(
                    "train.lr",
                    f"{figures.recipe.train.lr / 3:.0e}",
                    "smaller steps keep more of a good start",
                ),
                Try(
                    "train.epochs",
                    str(2 * figures.recipe.train.epochs),
                    "long schedules pay off in distillation (Beyer 2022)",
                ),
                Try("preflight.probe_resolutions", "true", "shows whether another resolution is better"),
            ),
        )
    ]


def _forgotten(
    figures: Figures,
    what: str,
    pair: Paired,
    classes: Sequence[Mapping[str, Any]],
    part: str,
) -> Finding:
    worst = ", ".join(f"{c['class']} ({c['negative_flips']} of {c['n']})" for c in classes[:NAMED])
    attempts = []
    if not figures.recipe.train.l2_sp:
        attempts.append(Try("train.l2_sp", "1e-3", "decay towards the starting weights (Li 2018)"))
    attempts.append(Try("train.lr", f"{figures.recipe.train.lr / 3:.0e}", "smaller steps"))
    if not figures.recipe.train.frozen_batchnorm:
        attempts.append(Try("train.frozen_batchnorm", "true", "keep the start's BatchNorm statistics"))
    if figures.recipe.loss.label_weight:
        attempts.append(
            Try("loss.label_weight", "0", "the teacher's targets remind the student of these classes")
        )
    return Finding(
        "forgetting",
        "problem" if outcome(pair) == "worse" else "note",
        f"{what}: {pair.negative_flips} images that the start classified correctly are now wrong, and "
        f"{pair.corrections} are newly correct. The most affected classes are {worst} (images newly wrong).",
        {"part": part, "classes": [dict(c) for c in classes[:NAMED]], **evidence_of(pair)},
        tuple(attempts),
    )


def _gap_of_kept(figures: Figures, start_test: Mapping[str, Any]) -> dict[str, float]:
    """The kept student's gain on val and on test: they differ where pretraining has seen val."""
    kept = figures.candidate(figures.candidates["kept"])
    test = figures.row(Role.DISTILLED)
    if kept is None or "top1" not in test:
        return {}
    return {
        "kept_gain_on_val": kept["val"]["top1"] - figures.start_val()["top1"],
        "kept_gain_on_test": test["top1"] - start_test["top1"],
    }
