"""Findings about the teacher and its targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean

import numpy as np

from tutelage.distillation.objective import soft_temperature
from tutelage.evaluation.input_variants import DESCRIPTIONS
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import outcome
from tutelage.pipeline.diagnose.figures import (
    Figures,
    Finding,
    Severity,
    Try,
    evidence_of,
    in_parts,
    interval,
)

LITTLE = 1.0  # points of top-1; of so small a lead a student can show almost nothing
SATURATED = 0.05  # share of the greatest entropy, log C
OUTSIDE = 10.0  # percent of a teacher's answers that are classes which the data does not have
UNDERCONFIDENT = 0.9  # a best temperature below this is that of an under-confident teacher
FEW_EPOCHS = 3  # of a first fit
FAR = 20.0  # points
MARGIN = 3.0  # points of confidence below accuracy
SCALE_FREE = {
    "dist",
    "standardised_kl",
}  # losses that a temperature hardly changes, or that scale logits themselves


def wrong_description(figures: Figures) -> Iterator[Finding]:
    """Pre-flight found that a teacher gets other images than in its training, or names its classes in another order."""
    for record in figures.preflight.get(DESCRIPTIONS) or ():
        if not record["fault"]:
            continue
        write = record.get("write")
        attempts = [
            Try("teacher.model", f"'{write}'", "the images are then made as the file was trained on them")
        ]
        yield Finding(
            "teacher described wrongly",
            "problem",
            f"{record['sentence']}.",
            {name: record[name] for name in ("given", "top1", "n", "p")},
            tuple(attempts) if write and record["place"] == 0 else (),
        )


def no_headroom(figures: Figures) -> Iterator[Finding]:
    """The teacher is hardly better than the starting student."""
    pair = figures.against(Role.TEACHER, Role.START)
    if pair is None or (outcome(pair) == "better" and pair.high > LITTLE):
        return
    surely = pair.high <= LITTLE
    severity: Severity = "problem" if surely else "note"
    words = (
        "There is no headroom: on this data the teacher is hardly better than the starting student"
        if surely
        else "It is uncertain whether the teacher is better than the starting student on this data"
    )
    attempts = [
        Try(
            "teacher.resolution",
            "best",
            "many teachers are best somewhat above the resolution they were trained at",
        )
    ]
    if not figures.stage("teacher-fit"):
        attempts.append(Try("teacher.fit", "{epochs: 3}", "fit the teacher to this data first"))
    attempts.append(Try("teacher.model", "a larger one", "a student closes only a part of the gap"))
    yield Finding(
        "no headroom",
        severity,
        f"{words} ({interval(pair)}), so that the student can gain little from it.",
        evidence_of(pair),
        tuple(attempts),
    )


def unfitted_teacher(figures: Figures) -> Iterator[Finding]:
    """A teacher that does not suit the data: it predicts absent classes, or labels alone do better."""
    fitted = any(row["stage"].startswith("teacher-fit") for row in figures.rows)
    fitted = fitted or figures.recipe.teacher.fit == "probe"
    outside, worse = _outside(figures), figures.worse(Role.TEACHER, Role.CONTROL)
    if outside < OUTSIDE and not worse:
        return
    words = []
    if outside >= OUTSIDE:
        words.append(f"{outside:.0f}% of its predictions on test are classes that the data does not have")
    if worse:
        words.append(
            f"it is significantly worse than the student trained with labels only ({in_parts(worse)})"
        )
    epochs = max(FEW_EPOCHS, 2 * len(figures.stage("teacher-fit")))
    yield Finding(
        "teacher not good enough after its fit" if fitted else "teacher not fitted to the domain",
        "problem",
        f"The teacher does not suit this data{', although it was fitted to it' if fitted else ''}: "
        f"{' and '.join(words)}.",
        {"outside_percent": outside, **(evidence_of(next(iter(worse.values()))) if worse else {})},
        (
            Try("teacher.fit", f"{{epochs: {epochs}}}", "fit the teacher to this data's labels for longer")
            if fitted
            else Try(
                "teacher.fit", f"{{epochs: {FEW_EPOCHS}}}", "fit the teacher to this data's labels first"
            ),
            Try("loss.label_weight", "0.5", "labels correct what the teacher gets wrong"),
        ),
        reservation="the teacher is below the labels-only control" if worse else "",
    )


def contradicted_labels(figures: Figures) -> Iterator[Finding]:
    """A good teacher disagrees with the labels of the training images."""
    on_val, on_train = _on_val(figures), figures.preflight["teacher"].get("train")
    if on_train is None or not _far_below(on_train["top1"], on_val):
        return
    yield Finding(
        "labels contradict the teacher",
        "problem" if figures.recipe.loss.label_weight > 0 else "note",
        f"The teacher has {on_val:.1f}% top-1 on val, but {on_train['top1']:.1f}% on {on_train['n']} training images "
        "without augmentation: the training labels are probably wrong or shuffled, or the images are of another kind.",
        {"train_top1": on_train["top1"], "val_top1": on_val, "train_n": on_train["n"]},
        (Try("loss.label_weight", "0", "learn from the teacher only, without these labels"),),
    )


def hiding_views(figures: Figures) -> Iterator[Finding]:
    """The teacher classifies the training images well, but not their augmented views."""
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
    attempts = [Try("view.crop_scale", "[0.6,1.0]", "larger crops show more of the object")]
    attempts += [Try("view.flip", "0", "if left and right matter in your images")] if view.flip else []
    attempts += [Try("view.rotation", "0", "if up and down matter in your images")] if view.rotation else []
    yield Finding(
        "views hide the object",
        "note",
        f"The teacher has {on_train['top1']:.1f}% top-1 on training images without augmentation, but {mean(seen):.1f}% "
        "on the views that the student learns from: the augmentation hides or changes the object.",
        {"plain_top1": on_train["top1"], "views_top1": mean(seen)},
        tuple(attempts),
    )


def saturated_teacher(figures: Figures) -> Iterator[Finding]:
    """Targets on the training images that are nearly one-hot contain little more than the labels."""
    seen = [row["targets"] for row in figures.stage("distill") if row.get("targets")]
    if not seen or not figures.recipe.loss.distils_with:
        return
    entropy, sure = (mean(targets[name] for targets in seen) for name in ("entropy", "confidence"))
    limit = SATURATED * math.log(figures.classes)
    if entropy >= limit:
        return
    temperature = soft_temperature(figures.recipe.loss)
    attempts = [
        Try("loss.temperature", f"{2 * temperature:g}", "softer targets show which classes are similar")
    ]
    if not figures.recipe.view.mixup:
        attempts.append(Try("view.mixup", "0.8", "no teacher is certain about mixed images"))
    if figures.stage("teacher-fit"):
        attempts.append(Try("teacher.fit.label_smoothing", "0.1", "the teacher becomes less confident"))
        attempts.append(Try("teacher.fit.epochs", "1", "the teacher memorises the training images less"))
    yield Finding(
        "saturated teacher",
        "note" if figures.gained else "problem",
        f"The teacher is over-confident on the training images: its targets have {entropy:.3f} nats of entropy at "
        f"T={temperature:g} (of at most {math.log(figures.classes):.2f}; mean confidence {sure:.1f}%), so that they "
        "contain little more than the labels.",
        {"entropy": entropy, "limit": limit, "confidence": sure, "temperature": temperature},
        tuple(attempts),
    )


def flat_temperature(figures: Figures) -> Iterator[Finding]:
    """A teacher that is under-confident by its training (label smoothing, mixup, BCE) is softened further."""
    recipe, teacher = figures.recipe.loss, figures.preflight["teacher"]["val"]
    best, sure = teacher.get("best_temperature"), teacher.get("confidence")
    temperature = soft_temperature(recipe)
    if best is None or temperature <= 1 or not set(recipe.distils_with) - set(SCALE_FREE):
        return
    if best / recipe.teacher_temperature > UNDERCONFIDENT or teacher["top1"] - sure < MARGIN:
        return
    improved = bool(figures.opponents) and figures.is_better_than(figures.opponents[0])
    severity: Severity = "note" if improved else "problem"
    yield Finding(
        "temperature too high for this teacher",
        severity,
        f"T={temperature:g} is too high for this teacher: it is under-confident (confidence {sure:.1f}%, accuracy "
        f"{teacher['top1']:.1f}%), as after label smoothing or mixup, and calibrated best at T={best:.2f}. Softened "
        "further, its targets carry less information about the images.",
        {
            "temperature": temperature,
            "best_temperature": best,
            "confidence": sure,
            "top1": teacher["top1"],
        },
        (
            Try("loss.teacher_temperature", "auto", "calibrate the teacher first, as a run does by default"),
            Try("loss.temperature", "1", "this teacher is soft enough already (Chandrasegaran 2022)"),
            Try(
                "loss.name",
                "dist",
                "DIST matches relations between classes, not the scale of the logits (Huang 2022)",
            ),
        ),
    )


def diverging_goals(figures: Figures) -> Iterator[Finding]:
    """The loss on val fell while accuracy fell too: the targets lead away from the labels."""
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
        attempts.append(Try("loss.temperature", "1", "more weight on what the teacher is certain about"))
    attempts.append(Try("teacher.resolution", "best", "the teacher may be better at another resolution"))
    attempts.append(Try("loss.name", "dist", "match relations between classes, not every logit (Huang 2022)"))
    yield Finding(
        "goal and accuracy part",
        "problem",
        f"The loss and the accuracy disagree: on val the loss fell from {start['loss']:.3f} to "
        f"{last['loss']:.3f} while top-1 also fell, from {start['top1']:.2f}% to {last['top1']:.2f}%. "
        "A better match of the targets does not make the student better here.",
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
    """Percent of the teacher's predictions on test that are not a class of the test images."""
    predictions = figures.predictions
    if Role.TEACHER not in predictions.roles:
        return 0.0
    known = np.unique(predictions.labels[predictions.labels >= 0])
    return 100 * float(np.mean(~np.isin(predictions.roles[Role.TEACHER].first, known)))
