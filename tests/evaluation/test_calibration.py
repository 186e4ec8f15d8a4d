"""Temperatures of a teacher's soft targets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tutelage.evaluation.calibration import (
    best_temperature,
    calibrating_temperature,
    entropy,
    matching_temperature,
)


def _drawn(scale: float, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a calibrated model, and labels drawn from its probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, 5, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_factor_by_which_logits_are_too_large_is_found(factor: float) -> None:
    logits, labels = _drawn(2.0, 20_000)
    assert calibrating_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_a_model_that_is_right_on_all_of_a_few_images_is_not_made_certain() -> None:
    labels = torch.arange(10)
    logits = 4 * torch.eye(10)
    assert best_temperature(logits, labels) < 0.1  # sharpened without end
    found = calibrating_temperature(logits, labels)
    assert 0.3 < found < 2
    # an independent minimum: ten images and an eleventh with a uniform label
    grid = torch.linspace(0.3, 2, 1701, dtype=torch.double)

    def loss(t: torch.Tensor) -> torch.Tensor:
        log_p = (logits.double() / t).log_softmax(1)
        return -log_p[labels, labels].sum() - log_p.mean(1).mean()

    assert found == pytest.approx(float(grid[torch.stack([loss(t) for t in grid]).argmin()]), abs=2e-3)


def test_images_without_a_label_are_left_out() -> None:
    logits, labels = _drawn(2.0, 400)
    extra = torch.cat([logits, 100 * torch.randn(50, 5)])
    unknown = torch.cat([labels, -torch.ones(50, dtype=torch.int64)])
    assert calibrating_temperature(extra, unknown) == calibrating_temperature(logits, labels)
    assert calibrating_temperature(logits, -torch.ones(400, dtype=torch.int64)) == 1.0


@given(st.floats(0.2, 1.5), st.integers(0, 5))
def test_the_matching_temperature_has_the_entropy_that_was_asked_for(target: float, seed: int) -> None:
    logits, _ = _drawn(3.0, 64, seed)
    found = matching_temperature(logits, target, (1.0, 4.0))
    if 1 < found < 4:
        assert entropy(logits, found) == pytest.approx(target, abs=2e-3)
    else:
        assert (target <= entropy(logits, 1.0)) if found == 1 else (target >= entropy(logits, 4.0))


def test_entropy_is_that_of_the_formula() -> None:
    logits, _ = _drawn(2.0, 50)
    p = logits.softmax(1)
    assert entropy(logits, 1.0) == pytest.approx(float(cross_entropy(logits, p)), rel=1e-5)
    assert entropy(torch.zeros(3, 7), 2.0) == pytest.approx(math.log(7))
