"""What is counted while a stage is trained, and the row of ``metrics.jsonl`` that is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.losses import dominant_labels
from tutelage.distillation.outputs import Outputs

ABOUT_TARGETS = "targets."  # names of figures that are no loss terms


@dataclass
class Counters:
    """Where the loop is, and its sums over the epoch so far; travels in the checkpoint.

    Attributes:
        epoch: epochs that are finished.
        step: steps of this epoch.
        updates: steps in all.
        bad_steps: steps whose loss or gradient was not finite.
        best: merit of the best epoch, see `evaluation.quality.merit`.
        rows: of all finished epochs.
        sums: of each loss term over the images of this epoch.
        targets: the same of figures about the teacher's targets.
        images: of this epoch.
        counted: of them, those that have a label and were not mixed with another.
        correct: of those, the ones that the student in training classified rightly.
        seconds: of this epoch.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    bad_steps: int = 0
    best: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    images: int = 0
    counted: int = 0
    correct: int = 0
    seconds: float = 0.0

    def add(self, figures: dict[str, float], images: int) -> None:
        """Count a step: means over its images by name."""
        self.counted += round(figures["counted"] * images)
        self.correct += round(figures["right"] * images)
        for name, value in figures.items():
            if name not in {"counted", "right"}:
                sums = self.targets if name.startswith(ABOUT_TARGETS) else self.sums
                sums[name] = sums.get(name, 0.0) + value * images
        self.images += images

    @property
    def means(self) -> dict[str, float]:
        """Of each loss term over the images of this epoch."""
        return {name: total / max(self.images, 1) for name, total in self.sums.items()}

    def row(self) -> dict[str, Any]:
        """What the finished epoch's row says of the training."""
        images = max(self.images, 1)
        loss = dict(sorted(self.means.items()))
        return {
            "step": self.updates,
            "loss": {"total": loss.pop("loss", None), **loss},
            "train_top1": 100 * self.correct / self.counted if self.counted else None,
            "targets": _targets_row(self.targets, images),
            "images_per_s": images / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "bad_steps": self.bad_steps,
        }

    def next_epoch(self) -> None:
        """Begin the sums anew."""
        self.sums, self.targets, self.seconds = {}, {}, 0.0
        self.images = self.counted = self.correct = 0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "best": [value if math.isfinite(value) else None for value in self.best]}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Counters:
        """The inverse of `record`."""
        best = [-math.inf if value is None else value for value in record["best"]]
        return cls(**{**record, "best": best})


def step_figures(
    losses: dict[str, Tensor],
    labels: Tensor,
    other_labels: Tensor,
    lam: float,
    targets: Outputs | None,
    temperature: float,
) -> dict[str, Tensor]:
    """Each loss term, the shares of counted and of right answers, and figures about the targets: means over a batch.

    An image counts for the training accuracy where it has a label and shows one class alone: what is right for a
    mixture of two is not defined.

    Args:
        losses: of a `Distiller`.
        labels: (B,) head indices, -1 where there is none.
        other_labels: (B,) of the images mixed in.
        lam: share of `labels`.
        targets: the teacher's outputs.
        temperature: at which the targets are softened.
    """
    counted = (labels >= 0) if lam == 1 else torch.zeros_like(labels, dtype=torch.bool)
    right = counted & (losses["logits"].detach().argmax(1) == labels)
    figures = {name: value.detach() for name, value in losses.items() if name != "logits"}
    logits = targets.logits if targets else None
    if isinstance(logits, Tensor):  # nothing is known of targets cut to the largest classes
        figures |= _about_targets(logits, dominant_labels(labels, other_labels, lam), temperature)
    return {**figures, "counted": counted.float().mean(), "right": right.float().mean()}


def _about_targets(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """What the teacher says of a batch, as means over its images."""
    soft = torch.softmax(logits.float() / temperature, 1)
    about = {
        "entropy": torch.special.entr(soft).sum(1),
        "confidence": 100 * logits.float().softmax(1).amax(1),
        "right": (logits.argmax(1) == labels).float(),
        "labelled": (labels >= 0).float(),
    }
    return {ABOUT_TARGETS + name: value.mean() for name, value in about.items()}


def _targets_row(sums: dict[str, float], images: int) -> dict[str, float | None] | None:
    """Of an epoch: entropy in nats at the loss's temperature, confidence and top-1 against the labels in percent."""
    if not sums:
        return None
    means = {name.removeprefix(ABOUT_TARGETS): total / images for name, total in sums.items()}
    right, labelled = means.pop("right"), means.pop("labelled")
    return {**means, "top1": 100 * right / labelled if labelled else None}
