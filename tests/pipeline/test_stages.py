"""What the stages of a run hand on: records that later stages leave as they are."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.models.digest import state_digest
from tutelage.models.source import Model, with_state
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import Checked, preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.train import train_control, train_student


def checked_run(tree: dict, root: Path, name: str = "run") -> Checked:
    """A run as far as its pre-flight."""
    recipe = parse_recipe(tree | {"name": name})
    prepared = prepare(recipe, begin(recipe, root, "test"), Silent())
    return preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))


def weights(model: Model) -> str:
    return state_digest(model.module.state_dict())


def test_each_model_keeps_the_weights_it_had_when_its_record_was_made(tiny: dict, tmp_path: Path) -> None:
    tiny["train"]["epochs"] = 1
    tiny["teacher"]["fit"] = {"epochs": 1, "lr": 3e-3}
    recipe = parse_recipe(tiny | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    loaded = weights(prepared.teachers[0])
    fitted = Fitted(prepared, fit_teachers(prepared), fit_head(prepared))
    assert weights(prepared.teachers[0]) == loaded != weights(fitted.teachers[0])
    checked = preflight(fitted)
    teacher, start = weights(checked.teachers[0]), weights(checked.student)
    control, distilled = train_control(checked), train_student(checked)
    assert control is not None
    assert (weights(checked.teachers[0]), weights(checked.student)) == (teacher, start)
    assert weights(checked.student) == weights(fitted.student) == state_digest(checked.start)
    assert weights(distilled.model) == state_digest(distilled.choice.kept.state)
    assert len({start, weights(control), weights(distilled.model)}) == 3


def test_a_module_has_its_own_weights_back_even_after_an_error() -> None:
    module = nn.Linear(2, 1)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    seen = []

    def body() -> None:
        with with_state(module, other):
            seen.append(bool(module.weight.any()))
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        body()
    assert seen == [False]
    assert all(torch.equal(own[name], tensor) for name, tensor in module.state_dict().items())
