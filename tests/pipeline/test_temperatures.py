"""The temperature of kl, where the recipe leaves it to the run."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.heard import Heard

from tutelage.core.files import entry
from tutelage.core.recipe import parse_recipe
from tutelage.data.loading import eval_loader
from tutelage.evaluation.calibration import calibrating_temperature, entropy
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers, teacher_of_targets
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.temperatures import CERTAIN, HIGH, matching_or_high


def logits(scale: float, classes: int, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(200, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_a_teacher_that_is_rather_certain_on_training_views_has_a_high_temperature(classes: int) -> None:
    certain = logits(40.0, classes)
    for target in (0.0, 0.5, math.log(classes)):  # whatever it is on val
        value, why = matching_or_high(certain, target)
        assert value == HIGH
        assert "rather certain" in why
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


@pytest.mark.parametrize("others", [[], ["test_efficientnet@none"]], ids=["one", "two"])
def test_a_teacher_with_several_looks_is_calibrated_by_their_mean(
    tiny: dict, tmp_path: Path, others: list[str]
) -> None:
    tiny["teacher"] |= {"fit": {"epochs": 1, "lr": 3e-3}, "others": others}
    tiny["targets"] = {"flip": True, "resolutions": [40, 32]}
    tiny["loss"] = {"teacher_temperature": "auto", "temperature": 2.0}
    heard = Heard()
    recipe = parse_recipe(tiny | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), heard)
    checked = preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
    val = prepared.splits.val
    teacher = teacher_of_targets(prepared, checked.teachers, "fp32")
    loader = eval_loader(val, teacher.input_specs, 64, 0)
    logits = torch.cat([teacher.logits(batch["images"]) for batch in loader])
    labels = torch.from_numpy(prepared.class_mapping.labels(val.labels))
    chosen = checked.prepared.recipe.loss.teacher_temperature
    assert chosen == pytest.approx(calibrating_temperature(logits, labels), abs=2e-3)
    assert chosen != pytest.approx(calibrating_temperature(checked.teacher_on_val.logits, labels), abs=2e-3)
    target = entry(prepared.run.preflight, "target_entropy")
    assert target == pytest.approx(entropy(logits / chosen, 2.0), abs=1e-4)
    top1 = 100 * (logits.argmax(1) == labels).float().mean().item()
    assert any(f"the mean of the teacher's looks has {top1:.2f} top-1" in line for line in heard.lines)
