"""Findings about the course of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tutelage.core.recipe import Recipe
from tutelage.pipeline.diagnose.figures import Figures, Finding, Severity, Try
from tutelage.pipeline.diagnose.teaching import contradicted_labels

PATIENCE = 2  # epochs after the best that have to pass before it counts as over
LEARNED = 0.05  # share by which the training loss has to fall meanwhile
FALL = 2.0  # points of top-1 lost in the first epoch: more than a gentle lr costs a pretrained start
IMPROVING = 0.01  # share by which the loss on val still falls
DRIFT = 0.1  # standard deviations that running means have moved


def overfitting(figures: Figures) -> Iterator[Finding]:
    """The training loss falls while val stands still."""
    for stage in ("distill", "control"):
        rows = figures.stage(stage)
        if len(rows) <= PATIENCE:
            continue
        turn = min(range(len(rows)), key=[row["val"]["loss"] for row in rows].__getitem__)
        fall = _share_lost(_train_loss(rows[turn]), _train_loss(rows[-1]))
        gain = max(row["val"]["top1"] for row in rows[turn:]) - rows[turn]["val"]["top1"]
        if len(rows) - 1 - turn < PATIENCE or fall < LEARNED or gain > figures.still:
            continue
        epoch = rows[turn]["epoch"]
        yield Finding(
            "overfitting",
            "problem" if stage == "distill" else "note",
            f"Overfitting since epoch {epoch} of {len(rows)} ({_words(stage)}): the training loss fell by another "
            f"{100 * fall:.0f}% while the loss on val rose from {rows[turn]['val']['loss']:.3f} to "
            f"{rows[-1]['val']['loss']:.3f} and top-1 gained nothing.",
            {
                "train_loss": [_train_loss(rows[turn]), _train_loss(rows[-1])],
                "val_loss": [rows[turn]["val"]["loss"], rows[-1]["val"]["loss"]],
                "val_top1": [rows[turn]["val"]["top1"], rows[-1]["val"]["top1"]],
            },
            _against_overfitting(figures.recipe, epoch),
            stage,
            epoch,
        )


def high_lr(figures: Figures) -> Iterator[Finding]:
    """A start that could do it already loses much of that in the first epoch, and the loss gets worse too."""
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
    after = "never came back" if recovered is None else f"was back only after epoch {recovered}"
    train = figures.recipe.train
    yield Finding(
        "lr too high",
        severity,
        f"The learning rate is too high for this start: the first epoch took val top-1 from {start['top1']:.2f} to "
        f"{rows[0]['val']['top1']:.2f} and made the loss on val worse ({start['loss']:.3f} to "
        f"{rows[0]['val']['loss']:.3f}); it {after}.",
        {
            "lr": train.lr,
            "start_top1": start["top1"],
            "first_top1": rows[0]["val"]["top1"],
            "start_loss": start["loss"],
            "first_loss": rows[0]["val"]["loss"],
        },
        (
            Try("train.lr", f"{train.lr / 10:.0e}", "a tenth: a pretrained student wants small steps"),
            Try("train.warmup_epochs", "1", "the steps grow slowly at first"),
        ),
        epoch=1,
    )


def few_epochs(figures: Figures) -> Iterator[Finding]:
    """Val was still getting better when the training ended."""
    rows = figures.stage("distill")
    if len(rows) < 2:
        return
    before, last = rows[-1 - max(1, len(rows) // 4)]["val"], rows[-1]["val"]
    better = last["top1"] - before["top1"]
    fall = _share_lost(before["loss"], last["loss"])
    at_its_best = last["loss"] <= min(row["val"]["loss"] for row in rows)
    recovering = figures.able and last["top1"] < figures.start_val()["top1"] - figures.still
    if recovering or not at_its_best or better <= figures.still or fall < IMPROVING:
        return
    yield Finding(
        "too few epochs",
        "note",
        f"Val was still improving at the end: top-1 {before['top1']:.2f} to {last['top1']:.2f} over the last "
        f"{max(1, len(rows) // 4)} of {len(rows)} epochs, the loss on val down by {100 * fall:.0f}%.",
        {"top1_gain": better, "loss_fall_percent": 100 * fall},
        (
            Try(
                "train.epochs",
                str(2 * figures.recipe.train.epochs),
                "patient schedules pay in distillation (Beyer 2022)",
            ),
        ),
        epoch=rows[-1]["epoch"],
    )


def batchnorm_drift(figures: Figures) -> Iterator[Finding]:
    """The running statistics are what spoils the trained student: measured anew, it is better."""
    distance = figures.training("batchnorm").get("distance")
    last, mended = figures.candidate("last"), figures.candidate("last-recalibrated")
    if distance is None or last is None or mended is None:
        return
    gain = mended["val"]["top1"] - last["val"]["top1"]
    if distance < DRIFT or gain < max(1.0, 2 * figures.still):
        return
    start = figures.start_val()["top1"]
    yield Finding(
        "BatchNorm drift",
        "problem" if figures.able and last["val"]["top1"] < start else "note",
        f"BatchNorm's running means moved by {distance:.2f} standard deviations from the start's and do not suit "
        f"un-augmented images: measured anew they lift the last epoch's val top-1 from {last['val']['top1']:.2f} "
        f"to {mended['val']['top1']:.2f}.",
        {
            "distance": distance,
            "last_top1": last["val"]["top1"],
            "recalibrated_top1": mended["val"]["top1"],
            "start_top1": start,
        },
        (
            *(
                [Try("train.frozen_batchnorm", "true", "keep the statistics of the start")]
                if figures.able
                else []
            ),
            Try("train.batch_size", str(2 * figures.recipe.train.batch_size), "steadier statistics"),
            Try("view.crop_scale", "[0.6,1.0]", "training images more like those it is used on"),
        ),
    )


def skipped_steps(figures: Figures) -> Iterator[Finding]:
    """Steps whose loss was not finite."""
    rows = figures.stage("distill")
    skipped = rows[-1].get("bad_steps", 0) if rows else 0
    if skipped:
        yield Finding(
            "skipped steps",
            "problem",
            f"{skipped} of {rows[-1]['step']} steps were skipped: their loss or its gradient was not finite.",
            {"bad_steps": skipped, "steps": rows[-1]["step"]},
            (
                Try("train.lr", f"{figures.recipe.train.lr / 10:.0e}", "smaller steps"),
                Try("train.clip_grad", "1.0", "no single batch moves the weights far"),
                Try("train.precision", "fp32", "more range than a reduced precision has digits"),
            ),
        )


def _train_loss(row: dict[str, Any]) -> float:
    """What also stands in val's loss: without the pull to the start."""
    return row["loss"]["total"] - row["loss"].get("l2_sp", 0.0)


def _other_cause(figures: Figures) -> bool:
    """Whether a fall of val is explained already: by BatchNorm's statistics, or by labels that are wrong."""
    mended = figures.candidate("last-recalibrated")
    whole = mended is not None and mended["val"]["top1"] >= figures.start_val()["top1"] - figures.still
    return whole or any(finding.severity == "problem" for finding in contradicted_labels(figures))


def _share_lost(before: float, after: float) -> float:
    return 1 - after / before if before > 0 else 0.0


def _words(stage: str) -> str:
    return {"distill": "distilling", "control": "labels-only control"}[stage]


def _against_overfitting(recipe: Recipe, epoch: int) -> tuple[Try, ...]:
    attempts = []
    if not recipe.view.mixup:
        attempts.append(Try("view.mixup", "0.8", "targets that never repeat"))
    if not recipe.view.cutmix:
        attempts.append(Try("view.cutmix", "1.0", "targets that never repeat"))
    if recipe.loss.label_weight:
        attempts.append(Try("loss.label_weight", "0", "the teacher's targets are harder to learn by heart"))
    if not recipe.train.l2_sp:
        attempts.append(Try("train.l2_sp", "1e-3", "stay near the start"))
    attempts.append(Try("train.epochs", str(epoch), "what came after gained nothing"))
    return tuple(attempts)
