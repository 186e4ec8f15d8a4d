"""The time and the disk space that a run announces."""

from pathlib import Path

import pytest
import torch

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.stages import estimate as module
from tutelage.pipeline.stages.estimate import CHECKPOINT_COPIES, Amounts, estimate

RATES = {"student": 100.0, "teacher": 50.0, "student_inference": 200.0}


@pytest.fixture(scope="module")
def student() -> Model:
    torch.manual_seed(0)
    return load_model("test_efficientnet@none", num_classes=10)


def test_it_counts_steps_of_both_trainings(student: Model, tmp_path: Path) -> None:
    recipe = parse_recipe({"train": {"epochs": 3, "batch_size": 10, "ema": 0}})
    ahead = estimate(recipe, Amounts(100, 20, 30, 100), RATES, student, tmp_path)
    assert ahead["steps"] == 60
    assert ahead["seconds"]["training"] == pytest.approx(300 * (0.01 + 0.02 + 0.01) + 2 * 3 * 20 * 0.005)
    alone = estimate(
        recipe.model_copy(update={"control": False}), Amounts(100, 20, 30, 100), RATES, student, tmp_path
    )
    assert alone["steps"] == 30
    assert alone["disk_mb"] < ahead["disk_mb"]
    assert alone["seconds"]["selection"] == ahead["seconds"]["selection"] / 2
    weights = sum(t.numel() * t.element_size() for t in student.module.state_dict().values())
    assert ahead["disk_mb"] == pytest.approx(weights * (2 * CHECKPOINT_COPIES + 3) / 1e6)


def test_the_preflight_and_all_evaluations_are_part_of_it(student: Model, tmp_path: Path) -> None:
    """Ten silent minutes of candidates followed a run that had announced six in all."""
    recipe = parse_recipe(
        {
            "train": {"epochs": 3, "batch_size": 10, "ema": 0, "frozen_batchnorm": True},
            "selection": {"soup": False},
            "control": False,
        }
    )
    found = estimate(recipe, Amounts(100, 40, 30, 100), RATES, student, tmp_path, spent=7.0)
    # val: after each of three epochs, and for the start and the two trained states
    assert found["seconds"] == {
        "preflight": 7.0,
        "training": pytest.approx(100 * (3 * 0.01 + 3 * 0.02) + 3 * 40 / 200),
        "selection": pytest.approx(40 * (1 + 2) / 200),
        "test": pytest.approx(30 * (3 / 200 + 1 / 50)),
    }
    assert found["estimated_seconds"] == pytest.approx(sum(found["seconds"].values()))


def test_statistics_that_are_measured_again_take_time(student: Model, tmp_path: Path) -> None:
    tree = {
        "train": {"epochs": 1, "batch_size": 10, "ema": 0},
        "selection": {"soup": False},
        "control": False,
    }
    frozen = {**tree, "train": {**tree["train"], "frozen_batchnorm": True}}
    often, once = (
        estimate(parse_recipe(one), Amounts(5000, 40, 30, 2048), RATES, student, tmp_path)["seconds"][
            "selection"
        ]
        for one in (tree, frozen)
    )
    # of the last and the best state: 256 training images, and val with the new statistics; of the better one all 2,048
    assert often - once == pytest.approx((2 * (256 + 40) + 2048 + 40) / 200)


def test_a_disk_that_is_too_small_stops_the_run(
    student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: Full)
    with pytest.raises(TutelageError, match="MB left"):
        estimate(Recipe(), Amounts(100, 20, 30, 100), dict.fromkeys(RATES, 1.0), student, tmp_path)
