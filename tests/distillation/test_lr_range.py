"""The learning rate range test finds a rate that trains well."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import TINY

from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.data.splits import make_splits
from tutelage.distillation.checkpoint import state_of
from tutelage.distillation.loop import train
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.lr_range import HIGHEST, LOWEST, SAFE, STEPS, range_test, suggested
from tutelage.distillation.objective import Objective
from tutelage.distillation.stage import Stage
from tutelage.models.registry import load_model

LOADING = Loading(0)
RATES = np.geomspace(LOWEST, HIGHEST, STEPS).tolist()


def stage(network: str, optimizer: str, **settings: object) -> Stage:
    tree = copy.deepcopy(TINY)
    tree["data"]["limit"] = 400
    tree["train"] |= {"optimizer": optimizer, "epochs": 10, "ema": 0.0, "warmup_epochs": 0.5, **settings}
    recipe = parse_recipe(tree)
    splits = make_splits(recipe.data)
    torch.manual_seed(0)
    model = load_model(f"{network}@none", num_classes=10).at(32)
    objective = Objective([CrossEntropy(1.0)])
    return Stage("x", model, recipe.train, recipe.view, objective, splits.train, splits.val, np.arange(10))


@pytest.mark.parametrize(("network", "optimizer"), [("test_efficientnet", "adamw"), ("test_resnet", "sgd")])
def test_the_rate_is_within_a_decade_of_the_best_of_a_grid(
    network: str, optimizer: str, tmp_path: Path
) -> None:
    runtime = Runtime.start()
    found = range_test(
        stage(network, optimizer), runtime, tmp_path / "none", loading=LOADING, progress=Silent()
    )
    rate = suggested(found)
    assert rate is not None

    def nll(lr: float) -> float:
        trained = train(
            stage(network, optimizer, lr=lr, epochs=3), runtime, tmp_path / f"{lr}", loading=LOADING
        )
        return min(row["val"]["nll"] for row in trained.rows)

    best = min((1e-4, 1e-3, 1e-2, 1e-1, 1.0), key=nll)
    assert abs(math.log10(rate / best)) <= 1, (rate, best)


def test_all_steps_have_their_rates_and_the_test_repeats_itself(tmp_path: Path) -> None:
    runtime, curves = Runtime.start(), []
    for _ in range(2):
        torch.manual_seed(len(curves))  # of another part of the program
        one = stage("test_resnet", "adamw")
        before = state_of(one.model.module)
        curves.append(range_test(one, runtime, tmp_path / "none", loading=LOADING, progress=Silent()))
        assert not torch.equal(before["fc.weight"], state_of(one.model.module)["fc.weight"])
    assert curves[0] == curves[1]
    assert [rate for rate, _ in curves[0]] == RATES[: len(curves[0])]
    assert len(curves[0]) > STEPS / 2
    assert list(tmp_path.iterdir()) == []


def curve(lowest: float) -> list[tuple[float, float]]:
    """A loss that falls from 2.3 at a rate of 1e-4 to 0.3 at `lowest`, and then rises at the same slope."""
    low = math.log10(lowest)
    losses = np.interp(np.log10(RATES), [-4, low, 2 * low + 4, 2 * low + 5], [2.3, 0.3, 2.3, 9.0])
    return list(zip(RATES, losses.tolist(), strict=True))


@pytest.mark.parametrize("lowest", [1e-3, 1e-2, 1e-1])
def test_a_part_of_the_rate_of_the_lowest_loss(lowest: float) -> None:
    assert suggested(curve(lowest)) == pytest.approx(lowest / SAFE, rel=0.15)


def test_what_follows_a_divergence_is_not_looked_at() -> None:
    found = curve(1e-2)
    back = [(rate, 0.01 if rate > 1 else loss) for rate, loss in found]
    assert suggested(back) == suggested(found)


def test_no_rate_where_the_loss_does_not_fall() -> None:
    assert suggested([(rate, 2.3 + 0.01 * (number % 3)) for number, rate in enumerate(RATES)]) is None
    assert suggested(curve(1e-2)[:20]) is None  # it ended too early
