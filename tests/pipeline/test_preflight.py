"""What is checked before the first step."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.real_runs import networks
from tests.helpers.shared import common_folder

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.distillation.teacher import Teacher
from tutelage.evaluation.calibration import best_temperature, confidence, entropy
from tutelage.evaluation.quality import Quality
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages import preflight


def measured(top1: float) -> Quality:
    return Quality(top1=top1, top5=100.0, nll=1.0, ece=0.0, n=100)


@pytest.fixture
def models() -> tuple[Model, Model, ClassMapping]:
    torch.manual_seed(0)
    teacher, student = (
        load_model(f"{name}@none", num_classes=10) for name in ("test_resnet", "test_efficientnet")
    )
    return teacher, student, ClassMapping(tuple(map(str, range(10))), np.arange(10), frozenset())


def by_name(checks: list[dict]) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in checks}


def test_a_teacher_as_the_run_uses_it_is_frozen_and_in_eval_mode(
    models: tuple[Model, Model, ClassMapping],
) -> None:
    teacher, student, class_mapping = models
    teacher.module.train().requires_grad_(True)
    Teacher([teacher], torch.device("cpu"))
    assert all(by_name(preflight.structure([teacher], student, class_mapping)).values())


def test_one_layer_in_train_mode_is_seen(models: tuple[Model, Model, ClassMapping]) -> None:
    teacher, student, class_mapping = models
    Teacher([teacher], torch.device("cpu"))
    next(m for m in teacher.module.modules() if isinstance(m, torch.nn.BatchNorm2d)).train()
    found = by_name(preflight.structure([teacher], student, class_mapping))
    assert (found["teacher in eval mode"], found["teacher frozen"]) == (False, True)


def test_one_parameter_with_a_gradient_is_seen(models: tuple[Model, Model, ClassMapping]) -> None:
    teacher, student, class_mapping = models
    Teacher([teacher], torch.device("cpu"))
    next(iter(teacher.module.parameters())).requires_grad_(True)
    found = by_name(preflight.structure([teacher], student, class_mapping))
    assert (found["teacher in eval mode"], found["teacher frozen"]) == (True, False)


def test_heads_of_other_sizes_are_seen(models: tuple[Model, Model, ClassMapping]) -> None:
    teacher, _, class_mapping = models
    other = load_model("test_efficientnet@none", num_classes=11)
    assert not by_name(preflight.structure([teacher], other, class_mapping))["heads agree"]


@pytest.mark.parametrize(
    ("teacher", "student", "named"),
    [
        (15.0, 8.0, "teacher above chance"),
        (70.0, 71.0, "better than student"),
        (70.0, 70.0, "better than student"),
    ],
)
def test_a_weak_teacher_stops_the_run_unless_the_recipe_allows_it(
    teacher: float, student: float, named: str
) -> None:
    with pytest.raises(TutelageError, match=named) as stopped:
        preflight.strength(measured(teacher), measured(student), 10, allow_weak=False)
    assert "preflight.allow_weak_teacher=true" in str(stopped.value)
    found = by_name(preflight.strength(measured(teacher), measured(student), 10, allow_weak=True))
    assert not all(found.values())


def test_a_good_teacher_passes() -> None:
    assert all(by_name(preflight.strength(measured(75.0), measured(70.0), 10, allow_weak=False)).values())


# --- what the targets say


def test_entropy_is_zero_for_sure_targets_and_log_c_for_flat_ones() -> None:
    assert entropy(torch.tensor([[200.0, 0.0, 0.0]]), 1.0) == pytest.approx(0, abs=1e-6)
    assert entropy(torch.zeros(4, 7), 1.0) == pytest.approx(np.log(7))
    assert entropy(torch.tensor([[4.0, 0.0]]), 4.0) > entropy(torch.tensor([[4.0, 0.0]]), 1.0)


def test_confidence_is_the_mean_top_probability() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
    assert confidence(logits) == pytest.approx(80)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_best_temperature_undoes_a_scale(scale: float) -> None:
    """Labels drawn from the logits' own probabilities: these are calibrated, and their multiples are best at that."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert best_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)


def test_unlabelled_images_do_not_count_for_the_best_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5, generator=generator)
    labels = torch.multinomial((2 * logits).softmax(1), 1, generator=generator)[:, 0]
    more = torch.cat([logits, 9 * torch.randn(100, 5, generator=generator)])
    padded = torch.cat([labels, torch.full((100,), -1)])
    assert best_temperature(more, padded) == pytest.approx(best_temperature(logits, labels))


# --- in a run


def recipe_of(root: Path, tiny: dict, **change: object) -> Recipe:
    tree = copy.deepcopy(tiny) | {"name": "weak", "control": False}
    tree["teacher"] = {"model": "test_resnet@none", "resolution": 32, "fit": "no"}
    tree["student"] = {"model": networks(root)["start"], "crop_pct": 1.0, "head_fit": "no"}
    return parse_recipe(json.loads(json.dumps(tree | change)))


def test_a_run_with_a_teacher_at_chance_stops_before_training(
    tiny: dict, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = recipe_of(common_folder(tmp_path_factory), tiny, preflight={})
    run = begin(recipe, tmp_path, "test")
    with pytest.raises(TutelageError, match="pre-flight: failed: teacher above chance"):
        distill(recipe, run, Silent())
    assert not run.metrics.exists()
    assert not run.student.exists()
