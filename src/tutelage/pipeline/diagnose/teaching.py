"""Findings about the teacher and its targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean

import numpy as np

from tutelage.distillation.objective import soft_temperature
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import outcome
from tutelage.pipeline.diagnose.figures import Figures, Finding, Severity, Try, evidence_of, interval

LITTLE = 1.0  # points of lead that no student can show the tenth of
SATURATED = 0.05  # share of the greatest entropy, log C
OUTSIDE = 10.0  # percent of a teacher's answers that are classes which the data does not have
UNDERCONFIDENT = 0.9  # best temperature of a teacher that is less sure than it is right
FAR = 20.0  # points
MARGIN = 3.0  # points of confidence below accuracy
SCALE_FREE = {
    "dist",
    "standardised_kl",
}  # losses that a temperature hardly changes, or that scale logits themselves


def no_headroom(figures: Figures) -> Iterator[Finding]:
    """The teacher is hardly better than the student was."""
    pair = figures.against(Role.TEACHER, Role.START)
    if pair is None or (outcome(pair) == "better" and pair.high > LITTLE):
        return
    surely = pair.high <= LITTLE
    severity: Severity = "problem" if surely else "note"
    words = (
        "There is no headroom: on this data the teacher is hardly better than the student was"
        if surely
        else "It is not sure that the teacher is better than the student was on this data"
    )
    attempts = [
        Try("teacher.resolution", "best", "teachers are often best somewhat above their own resolution")
    ]
    if not figures.stage("teacher-fit"):
        attempts.append(Try("teacher.fit", "{epochs: 3}", "fit it to this data first"))
    attempts.append(Try("teacher.model", "a larger one", "a student can close a part of the gap only"))
    yield Finding("no headroom", severity, f"{words} ({interval(pair)}).", evidence_of(pair), tuple(attempts))


def unfitted_teacher(figures: Figures) -> Iterator[Finding]:
    """A teacher that never saw this data: it names classes that are not there, or labels alone reach more."""
    if any(row["stage"].startswith("teacher-fit") for row in figures.rows):
        return
    outside = _outside(figures)
    beaten = figures.against(Role.CONTROL, Role.TEACHER)
    is_beaten = beaten is not None and outcome(beaten) == "better"
    if outside < OUTSIDE and not is_beaten:
        return
    words = []
    if outside >= OUTSIDE:
        words.append(f"{outside:.0f}% of its answers on test are classes that the data does not have")
    if beaten is not None and is_beaten:
        words.append(f"labels alone brought the student past it ({interval(beaten)})")
    yield Finding(
        "teacher not fitted to the domain",
        "problem",
        f"The teacher is not fitted to this data: {' and '.join(words)}.",
        {"outside_percent": outside, **(evidence_of(beaten, "control_") if beaten else {})},
        (
            Try("teacher.fit", "{epochs: 3}", "fit it to this data's labels first"),
            Try("loss.label_weight", "0.5", "labels hold against what it has wrong"),
        ),
    )


def contradicted_labels(figures: Figures) -> Iterator[Finding]:
    """The training labels are not what a good teacher sees in the plain images."""
    on_val, on_train = _on_val(figures), figures.preflight["teacher"].get("train")
    if on_train is None or not _far_below(on_train["top1"], on_val):
        return
    yield Finding(
        "labels contradict the teacher",
        "problem" if figures.recipe.loss.label_weight > 0 else "note",
        f"The teacher has {on_val:.1f} top-1 on val, but {on_train['top1']:.1f} on {on_train['n']} plain training "
        "images: their labels are wrong or shuffled, or they are of another kind.",
        {"train_top1": on_train["top1"], "val_top1": on_val, "train_n": on_train["n"]},
        (Try("loss.label_weight", "0", "learn from the teacher alone"),),
    )


def hiding_views(figures: Figures) -> Iterator[Finding]:
    """The teacher knows the training images but not the views made of them."""
    seen = [
        t["top1"]
        for row in figures.stage("distill")
        if (t := row.get("targets")) and t.get("top1") is not None
    ]
    on_val, on_train = _on_val(figures), figures.preflight["teacher"].get("train")
    if not seen or on_train is None or _far_below(on_train["top1"], on_val):
        return
    if not _far_below(mean(seen), on_train["top1"]):
        return
    view = figures.recipe.view
    attempts = [Try("view.crop_scale", "[0.6,1.0]", "larger crops show more of it")]
    attempts += [Try("view.flip", "0", "if left and right mean something")] if view.flip else []
    attempts += [Try("view.rotation", "0", "if up and down mean something")] if view.rotation else []
    yield Finding(
        "views hide the object",
        "note",
        f"The teacher is right on {on_train['top1']:.1f}% of the plain training images, but on {mean(seen):.1f}% of "
        "the views that the student learns from: the augmentation hides or changes what they show.",
        {"plain_top1": on_train["top1"], "views_top1": mean(seen)},
        tuple(attempts),
    )


def saturated_teacher(figures: Figures) -> Iterator[Finding]:
    """Targets on the training images that are nearly one-hot say no more than labels do."""
    seen = [row["targets"] for row in figures.stage("distill") if row.get("targets")]
    if not seen or not figures.recipe.loss.distils_with:
        return
    entropy, sure = (mean(targets[name] for targets in seen) for name in ("entropy", "confidence"))
    limit = SATURATED * math.log(figures.classes)
    if entropy >= limit:
        return
    temperature = soft_temperature(figures.recipe.loss)
    attempts = [Try("loss.temperature", f"{2 * temperature:g}", "softer targets show how classes resemble")]
    if not figures.recipe.view.mixup:
        attempts.append(Try("view.mixup", "0.8", "of mixed images no teacher is sure"))
    if figures.stage("teacher-fit"):
        attempts.append(Try("teacher.fit.label_smoothing", "0.1", "a teacher that is less sure"))
        attempts.append(Try("teacher.fit.epochs", "1", "a teacher that knows the images less by heart"))
    yield Finding(
        "saturated teacher",
        "note" if figures.gained else "problem",
        f"The teacher is saturated: its targets on the training images have {entropy:.3f} nats of entropy at "
        f"T={temperature:g} (of {math.log(figures.classes):.2f} possible; top class {sure:.1f}% sure), so that they "
        "say little more than labels do.",
        {"entropy": entropy, "limit": limit, "confidence": sure, "temperature": temperature},
        tuple(attempts),
    )


def flat_temperature(figures: Figures) -> Iterator[Finding]:
    """A teacher that is unsure by its training (label smoothing, mixup, BCE) is softened still more."""
    recipe, teacher = figures.recipe.loss, figures.preflight["teacher"]["val"]
    best, sure = teacher.get("best_temperature"), teacher.get("confidence")
    temperature = soft_temperature(recipe)
    if best is None or temperature <= 1 or not set(recipe.distils_with) - set(SCALE_FREE):
        return
    if best > UNDERCONFIDENT or teacher["top1"] - sure < MARGIN:
        return
    improved = bool(figures.opponents) and figures.is_better_than(figures.opponents[0])
    severity: Severity = "note" if improved else "problem"
    yield Finding(
        "temperature too high for this teacher",
        severity,
        f"T={temperature:g} is wrong for this teacher: it is less sure ({sure:.1f}%) than it is right "
        f"({teacher['top1']:.1f}%), as after label smoothing or mixup, and best at T={best:.2f}; softened further its "
        "targets say more about the smoothing than about the images.",
        {
            "temperature": temperature,
            "best_temperature": best,
            "confidence": sure,
            "top1": teacher["top1"],
        },
        (
            Try("loss.temperature", "1", "the teacher's own softness is enough (Chandrasegaran 2022)"),
            Try("loss.name", "dist", "it matches relations, not the scale of the logits (Huang 2022)"),
        ),
    )


def diverging_goals(figures: Figures) -> Iterator[Finding]:
    """The student came nearer to the targets and lost accuracy by it: they lead away from the labels."""
    rows, start = figures.stage("distill"), figures.start_val()
    if not rows or not figures.able or "loss" not in start:
        return
    last = rows[-1]["val"]
    lost = start["top1"] - last["top1"]
    if lost < max(1.0, 2 * figures.still) or last["loss"] >= start["loss"]:
        return
    recipe = figures.recipe.loss
    attempts = []
    if soft_temperature(recipe) > 1:
        attempts.append(Try("loss.temperature", "1", "weigh what the teacher is sure of"))
    attempts.append(Try("teacher.resolution", "best", "a better teacher"))
    attempts.append(Try("loss.name", "dist", "match relations between classes, not every logit"))
    yield Finding(
        "goal and accuracy part",
        "problem",
        f"What is minimised and what is wanted part ways: on val the loss fell from {start['loss']:.3f} to "
        f"{last['loss']:.3f} while top-1 fell from {start['top1']:.2f} to {last['top1']:.2f}.",
        {
            "start_loss": start["loss"],
            "last_loss": last["loss"],
            "start_top1": start["top1"],
            "last_top1": last["top1"],
        },
        tuple(attempts),
    )


def _on_val(figures: Figures) -> float:
    return float(figures.preflight["teacher"]["val"]["top1"])


def _far_below(top1: float, other: float) -> bool:
    """Less than half, and not only because both are small."""
    return top1 <= other / 2 and other - top1 >= FAR


def _outside(figures: Figures) -> float:
    """Percent of the teacher's answers on test that are no class of the test images."""
    predictions = figures.predictions
    if Role.TEACHER not in predictions.roles:
        return 0.0
    known = np.unique(predictions.labels[predictions.labels >= 0])
    return 100 * float(np.mean(~np.isin(predictions.roles[Role.TEACHER].first, known)))
