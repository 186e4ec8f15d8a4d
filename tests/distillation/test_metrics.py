"""The figures of an epoch are those of its images, counted by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tutelage.distillation.metrics import Counters, step_figures
from tutelage.distillation.outputs import Outputs

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0]])


def count(steps: list[tuple[list[int], float]]) -> Counters:
    """Of steps of four images each: their labels, and the share of these in mixed images."""
    counters = Counters()
    for given, lam in steps:
        labels = torch.tensor(given)
        losses = {"logits": LOGITS, "loss": torch.tensor(1.0)}
        figures = step_figures(losses, labels, labels.flip(0), lam, Outputs(LOGITS), 1.0)
        counters.add({name: value.item() for name, value in figures.items()}, len(labels))
    return counters


@pytest.mark.parametrize(
    ("steps", "top1"),
    [
        ([([0, 1, 2, 0], 1.0)], 75.0),
        ([([0, 1, -1, -1], 1.0)], 100.0),  # images without a label were counted as wrong
        ([([0, 1, 2, 0], 1.0), ([1, 2, 0, 1], 0.6)], 75.0),  # mixed ones were judged by one of their labels
        ([([0, 1, 2, 2], 0.6)], None),
        ([([-1, -1, -1, -1], 1.0)], None),
    ],
)
def test_training_accuracy_is_that_of_labelled_images_that_are_not_mixed(
    steps: list[tuple[list[int], float]], top1: float | None
) -> None:
    assert count(steps).row()["train_top1"] == (None if top1 is None else pytest.approx(top1))


def test_targets_are_judged_by_the_labels_that_are_there() -> None:
    found = count([([0, 1, -1, -1], 1.0)]).row()["targets"]
    assert found["top1"] == pytest.approx(100.0)
    assert found["confidence"] == pytest.approx(100 * math.exp(2) / (math.exp(2) + 2), rel=1e-5)


def test_counters_travel_as_json() -> None:
    counters = count([([0, 1, 2, 0], 1.0)])
    assert Counters.read(json.loads(json.dumps(counters.record(), allow_nan=False))) == counters
    counters.next_epoch()
    assert (counters.images, counters.counted, counters.correct, counters.sums) == (0, 0, 0, {})
