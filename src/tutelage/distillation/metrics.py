"""Counters of a stage in training, and the row of ``metrics.jsonl`` that is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.losses import dominant_labels
from tutelage.distillation.outputs import Outputs

ABOUT_TARGETS = "targets."  # begins the names of figures about the targets, which are not loss terms


@dataclass
class Counters:
    """The position of the loop, and its sums over the epoch so far; part of the checkpoint.

    Attributes:
        epoch: finished epochs.
        step: finished steps of this epoch.
        updates: finished steps in total.
        bad_steps: steps whose loss or gradient was not finite.
        best: merit of the best epoch, see `evaluation.quality.merit`.
        rows: rows of all finished epochs.
        sums: sum of each loss term over the images of this epoch.
        targets: the same for figures about the teacher's targets.
        images: images of this epoch so far.
        counted: those of them that have a label and were not mixed with another image.
        correct: those of `counted` that the student in training classified correctly.
        seconds: duration of this epoch so far.
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
        """Add a step of this many images; `figures` are means over them by name."""
        self.counted += round(figures["counted"] * images)
        self.correct += round(figures["right"] * images)
        for name, value in figures.items():
            if name not in {"counted", "right"}:
                sums = self.targets if name.startswith(ABOUT_TARGETS) else self.sums
                sums[name] = sums.get(name, 0.0) + value * images
        self.images += images

    @property
    def means(self) -> dict[str, float]:
        """The mean of each loss term over the images of this epoch so far."""
        return {name: total / max(self.images, 1) for name, total in self.sums.items()}

    def row(self) -> dict[str, Any]:
        """Return the training figures for the finished epoch's row."""
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
        """Reset the sums for the next epoch."""
        self.sums, self.targets, self.seconds = {}, {}, 0.0
        self.images = self.counted = self.correct = 0

    def record(self) -> dict[str, Any]:
        """Return the counters as JSON values."""
        return {**vars(self), "best": [value if math.isfinite(value) else None for value in self.best]}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Counters:
        """Make counters from the result of `record`."""
        best = [-math.inf if value is None else value for value in record["best"]]
        return cls(**{**record, "best": best})


class Pending:
    """Figures of steps that are still on the device, so that the host need not wait for each step."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, list[str], int]] = []
        self._values: list[Tensor] = []

    def add(self, step: int, figures: dict[str, Tensor], good: Tensor, images: int) -> None:
        """Add a step: its number, the means (of () each) over its images, and whether it was made."""
        self._steps.append((step, list(figures), images))
        self._values.append(torch.stack([*figures.values(), good.to(torch.float32)]))

    def read(self) -> Iterator[tuple[int, dict[str, float], bool, int]]:
        """Read the steps that were added since the last time, with one transfer from the device."""
        steps, values = self._steps, iter(torch.cat(self._values).tolist() if self._values else [])
        self._steps, self._values = [], []
        for step, names, images in steps:
            figures = {name: next(values) for name in names}
            yield step, figures, bool(next(values)), images


def step_figures(
    losses: dict[str, Tensor],
    labels: Tensor,
    other_labels: Tensor,
    lam: float,
    targets: Outputs | None,
    temperature: float,
) -> dict[str, Tensor]:
    """Return means over a batch: each loss term, the shares of counted and of correct images, and target figures.

    Only images with a label that are not mixed count for the training accuracy, since a mixture of two classes has
    no single correct answer.

    Args:
        losses: of a `Distiller`.
        labels: (B,) head indices, -1 where an image has no label.
        other_labels: (B,) labels of the images mixed in.
        lam: share of `labels`.
        targets: the teacher's outputs.
        temperature: at which the targets are softened.
    """
    counted = (labels >= 0) if lam == 1 else torch.zeros_like(labels, dtype=torch.bool)
    right = counted & (losses["logits"].detach().argmax(1) == labels)
    figures = {name: value.detach() for name, value in losses.items() if name != "logits"}
    logits = targets.logits if targets else None
    if isinstance(logits, Tensor):  # top-k targets do not have all probabilities
        figures |= _about_targets(logits, dominant_labels(labels, other_labels, lam), temperature)
    return {**figures, "counted": counted.float().mean(), "right": right.float().mean()}


def _about_targets(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """Compute figures about the teacher's targets, as means over a batch."""
    soft = torch.softmax(logits.float() / temperature, 1)
    about = {
        "entropy": torch.special.entr(soft).sum(1),
        "confidence": 100 * logits.float().softmax(1).amax(1),
        "right": (logits.argmax(1) == labels).float(),
        "labelled": (labels >= 0).float(),
    }
    return {ABOUT_TARGETS + name: value.mean() for name, value in about.items()}


def _targets_row(sums: dict[str, float], images: int) -> dict[str, float | None] | None:
    """Return an epoch's entropy in nats at the loss's temperature, and confidence and top-1 in percent."""
    if not sums:
        return None
    means = {name.removeprefix(ABOUT_TARGETS): total / images for name, total in sums.items()}
    right, labelled = means.pop("right"), means.pop("labelled")
    return {**means, "top1": 100 * right / labelled if labelled else None}
