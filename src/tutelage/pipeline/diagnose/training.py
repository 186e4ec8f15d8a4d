"""Findings about the course of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tutelage.core.recipe import Recipe
from tutelage.pipeline.diagnose.figures import Figures, Finding, Severity, Try, over_the_last
from tutelage.pipeline.diagnose.teaching import contradicted_labels

PATIENCE = 2  # epochs that must follow the best one before it counts as the turning point
LEARNED = 0.05  # share by which the training loss has to fall meanwhile
RISE = 0.01  # share by which the loss on val has to be above its lowest, or it stood still
FALL = 2.0  # points of top-1 lost in the first epoch: more than a gentle lr costs a pretrained start
IMPROVING = 0.01  # share by which the loss on val still falls
DRIFT = 0.1  # standard deviations that running means have moved


def overfitting(figures: Figures) -> Iterator[Finding]:
    """The training loss falls while the student no longer improves on val."""
    for stage in ("distill", "control"):
        rows = figures.stage(stage)
        if len(rows) <= PATIENCE:
            continue
        turn = min(range(len(rows)), key=[row["val"]["loss"] for row in rows].__getitem__)
        fall = _share_lost(_train_loss(rows[turn]), _train_loss(rows[-1]))
        gain = max(row["val"]["top1"] for row in rows[turn:]) - rows[turn]["val"]["top1"]
        if len(rows) - 1 - turn < PATIENCE or fall < LEARNED or gain > figures.still:
            continue
        epoch, lowest, end = rows[turn]["epoch"], rows[turn]["val"]["loss"], rows[-1]["val"]["loss"]
        rose = end > (1 + RISE) * lowest
        course = f"{'rose' if rose else 'stood still'} ({lowest:.3f} then, {end:.3f} at the end)"
        # at the end of a schedule, where the rate is near 0, even a good run learns a little more of its images
        harmful = stage == "distill" and (rose or not figures.gained)
        yield Finding(
            "overfitting",
            "problem" if harmful else "note",
            f"Overfitting since epoch {epoch} of {len(rows)} ({_words(stage)}): the training loss fell by a further "
            f"{100 * fall:.0f}% while the loss on val {course} and top-1 did not improve.",
            {
                "train_loss": [_train_loss(rows[turn]), _train_loss(rows[-1])],
                "val_loss": [lowest, end],
                "val_top1": [rows[turn]["val"]["top1"], rows[-1]["val"]["top1"]],
            },
            _against_overfitting(figures.recipe, epoch),
            stage,
            epoch,
        )


def high_lr(figures: Figures) -> Iterator[Finding]:
    """A capable start loses much accuracy in the first epoch, and the loss rises too."""
    rows, start = figures.stage("distill"), figures.start_val()
    if not rows or not figures.able or "loss" not in start:
        return
    fall = start["top1"] - rows[0]["val"]["top1"]
    if (
        _other_cause(figures)
        or fall < max(FALL, 2 * figures.still)
        or rows[0]["val"]["loss"] <= start["loss"]
    ):
        return
    recovered = next((r["epoch"] for r in rows if r["val"]["top1"] > start["top1"] + figures.still), None)
    severity: Severity = "problem" if recovered is None else "note"
    after = "never recovered" if recovered is None else f"recovered only after epoch {recovered}"
    train = figures.recipe.train
    yield Finding(
        "lr too high",
        severity,
        f"The learning rate is too high for this start: in the first epoch, val top-1 fell from "
        f"{start['top1']:.2f}% to {rows[0]['val']['top1']:.2f}% and the loss on val rose ({start['loss']:.3f} to "
        f"{rows[0]['val']['loss']:.3f}); top-1 {after}.",
        {
            "lr": train.lr,
            "start_top1": start["top1"],
            "first_top1": rows[0]["val"]["top1"],
            "start_loss": start["loss"],
            "first_loss": rows[0]["val"]["loss"],
        },
        (
            Try("train.lr", f"{train.lr / 10:.0e}", "a tenth of it: a pretrained student needs small steps"),
            Try("train.warmup_epochs", "1", "the learning rate rises more slowly at first"),
        ),
        epoch=1,
    )


def few_epochs(figures: Figures) -> Iterator[Finding]:
    """The student was still improving on val when the training ended."""
    rows = figures.stage("distill")
    if len(rows) < 2:
        return
    back = max(1, len(rows) // 4)
    before, last = rows[-1 - back]["val"], rows[-1]["val"]
    better = last["top1"] - before["top1"]
    fall = _share_lost(before["loss"], last["loss"])
    at_its_best = last["loss"] <= min(row["val"]["loss"] for row in rows)
    recovering = figures.able and last["top1"] < figures.start_val()["top1"] - figures.still
    if recovering or not at_its_best or better <= figures.still or fall < IMPROVING:
        return
    yield Finding(
        "too few epochs",
        "note",
        f"The student was still improving when training ended: {over_the_last(back, len(rows))}, "
        f"val top-1 rose from {before['top1']:.2f}% to {last['top1']:.2f}% and the loss on val fell by "
        f"{100 * fall:.0f}%.",
        {"top1_gain": better, "loss_fall_percent": 100 * fall},
        (
            Try(
                "train.epochs",
                str(2 * figures.recipe.train.epochs),
                "long schedules pay off in distillation (Beyer 2022)",
            ),
        ),
        epoch=rows[-1]["epoch"],
    )


def batchnorm_drift(figures: Figures) -> Iterator[Finding]:
    """BatchNorm's running statistics harm the trained student: recalibrated, it is better."""
    distance = figures.training("batchnorm").get("distance")
    last, recalibrated = figures.candidate("last"), figures.candidate("last-recalibrated")
    if distance is None or last is None or recalibrated is None:
        return
    gain = recalibrated["val"]["top1"] - last["val"]["top1"]
    if distance < DRIFT or gain < max(1.0, 2 * figures.still):
        return
    start = figures.start_val()["top1"]
    yield Finding(
        "BatchNorm drift",
        "problem" if figures.able and last["val"]["top1"] < start else "note",
        f"BatchNorm's running means moved by {distance:.2f} standard deviations from the start's, and do not suit "
        f"images without augmentation: recalibration raises the last epoch's val top-1 from {last['val']['top1']:.2f}% "
        f"to {recalibrated['val']['top1']:.2f}%.",
        {
            "distance": distance,
            "last_top1": last["val"]["top1"],
            "recalibrated_top1": recalibrated["val"]["top1"],
            "start_top1": start,
        },
        (
            *(
                [Try("train.frozen_batchnorm", "true", "keep the start's BatchNorm statistics")]
                if figures.able
                else []
            ),
            Try(
                "train.batch_size",
                str(2 * figures.recipe.train.batch_size),
                "statistics of larger batches are more stable",
            ),
            Try("view.crop_scale", "[0.6,1.0]", "training images more like those at test time"),
        ),
    )


def skipped_steps(figures: Figures) -> Iterator[Finding]:
    """Some steps were skipped because the loss was not finite."""
    rows = figures.stage("distill")
    skipped = rows[-1].get("bad_steps", 0) if rows else 0
    if skipped:
        yield Finding(
            "skipped steps",
            "problem",
            f"{skipped} of {rows[-1]['step']} steps were skipped, because their loss or its gradient was not finite: "
            "training is unstable.",
            {"bad_steps": skipped, "steps": rows[-1]["step"]},
            (
                Try("train.lr", f"{figures.recipe.train.lr / 10:.0e}", "smaller steps are more stable"),
                Try("train.clip_grad", "1.0", "limits how far a single batch moves the weights"),
                Try("train.precision", "fp32", "more digits than bf16 has"),
            ),
        )


def _train_loss(row: dict[str, Any]) -> float:
    """The training loss without the L2-SP term, to compare with the loss on val."""
    return row["loss"]["total"] - row["loss"].get("l2_sp", 0.0)


def _other_cause(figures: Figures) -> bool:
    """Whether BatchNorm's statistics or wrong labels explain the fall on val already."""
    recalibrated = figures.candidate("last-recalibrated")
    whole = (
        recalibrated is not None
        and recalibrated["val"]["top1"] >= figures.start_val()["top1"] - figures.still
    )
    return whole or any(finding.severity == "problem" for finding in contradicted_labels(figures))


def _share_lost(before: float, after: float) -> float:
    return 1 - after / before if before > 0 else 0.0


def _words(stage: str) -> str:
    return {"distill": "distillation", "control": "labels-only control"}[stage]


def _against_overfitting(recipe: Recipe, epoch: int) -> tuple[Try, ...]:
    attempts = []
    if not recipe.view.mixup:
        attempts.append(Try("view.mixup", "0.8", "the student never sees the same target twice"))
    if not recipe.view.cutmix:
        attempts.append(Try("view.cutmix", "1.0", "the student never sees the same target twice"))
    if recipe.loss.label_weight:
        attempts.append(Try("loss.label_weight", "0", "the teacher's targets are harder to memorise"))
    if not recipe.train.l2_sp:
        attempts.append(Try("train.l2_sp", "1e-3", "keeps the weights near the start (Li 2018)"))
    attempts.append(Try("train.epochs", str(epoch), "later epochs did not improve"))
    return tuple(attempts)
