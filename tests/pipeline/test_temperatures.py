"""The temperature of kl, where the recipe leaves it to the run."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.evaluation.calibration import entropy
from tutelage.pipeline.stages.temperatures import CERTAIN, HIGH, matching_or_high


def logits(scale: float, classes: int, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(200, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_a_teacher_that_is_nearly_certain_on_training_views_has_a_high_temperature(classes: int) -> None:
    certain = logits(40.0, classes)
    for target in (0.0, 0.5, math.log(classes)):  # whatever it is on val
        value, why = matching_or_high(certain, target)
        assert value == HIGH
        assert "nearly certain" in why
        assert f"{entropy(certain, 1.0):.3f} nats" in why


@given(
    scale=st.floats(0.1, 20),
    classes=st.sampled_from([2, 10, 200]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_others_have_the_entropy_of_val_on_training_views_within_bounds(
    scale: float, classes: int, share: float, seed: int
) -> None:
    views, target = logits(scale, classes, seed), share * math.log(classes)
    value, why = matching_or_high(views, target)
    if entropy(views, 1.0) < CERTAIN * math.log(classes):
        assert value == HIGH
        return
    assert 1 <= value <= 4
    assert f"and {target:.3f} on val" in why
    if value not in (1.0, 4.0):
        assert entropy(views, value) == pytest.approx(target, abs=0.02 * math.log(classes))
