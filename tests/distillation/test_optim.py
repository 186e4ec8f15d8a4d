"""Optimizers: those that cannot be used are refused before any work, with the reason."""

from pathlib import Path

import pytest
import torch

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.recipe import TrainRecipe, load_recipe
from tutelage.distillation.optim import check_optimizer, make_optimizer, make_schedule

REFUSED = {
    "no gradients alone": (
        {"optimizer": "adahessian"},
        "'adahessian' cannot take a step from gradients alone",
    ),
    "momentum": (
        {"optimizer": "sgd", "momentum": 0},
        "'sgd' does not take these settings (Nesterov momentum",
    ),
    "unknown": ({"optimizer": "adamm"}, "'adamm' is not one of timm's optimizers; did you mean 'adam"),
    "another prefix": ({"optimizer": "my_adamw"}, "'my_adamw' is not one of timm's optimizers"),
    "prefix alone": ({"optimizer": "lookahead_"}, "'lookahead_' is not one of timm's optimizers"),
    "no name": ({"optimizer": ""}, "'' is not one of timm's optimizers"),
    "of a GPU": ({"optimizer": "fusedlamb"}, "'fusedlamb'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_optimizer_that_cannot_be_used_is_one_line(kind: str) -> None:
    settings, line = REFUSED[kind]
    with pytest.raises(TutelageError) as raised:
        check_optimizer(TrainRecipe.model_validate(settings))
    assert str(raised.value).startswith(f"train.optimizer: {line}")
    assert "\n" not in str(raised.value)


TAKEN = (
    *(
        "adamw",
        "AdamW",
        "sgd",
        "momentum",
        "nadamw",
        "lamb",
        "lars",
        "lion",
        "adopt",
        "muon",
        "rmsproptf",
        "adafactor",
    ),
    *("adan", "adabelief", "radam", "laprop", "lookahead_adamw"),
)


@pytest.mark.parametrize("name", TAKEN)
def test_others_are_taken_and_the_seed_is_left_alone(name: str) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    check_optimizer(TrainRecipe(optimizer=name))
    assert torch.equal(torch.rand(2), wanted)


def test_a_run_is_refused_before_it_has_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--runs", str(tmp_path / "runs"), "--data", "digits", "train.optimizer=adahessian"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: train.optimizer: 'adahessian' cannot take a step")
    assert not (tmp_path / "runs").exists()


def test_the_rate_is_divided_by_ten_at_each_milestone() -> None:
    """Of SGD at 0.05, in the first step after the epoch; in whatever order the milestones are given."""
    settings = TrainRecipe(
        epochs=6, lr=0.05, optimizer="sgd", schedule="multistep", milestones=(4, 2), warmup_epochs=0
    )
    optimizer = make_optimizer(torch.nn.Linear(2, 2), [], settings, head_only=True)
    schedule, steps, rates = make_schedule(optimizer, settings, 7), 7, []
    for step in range(6 * steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05] * 2 * steps + [0.005] * 2 * steps + [0.0005] * 2 * steps)


@pytest.mark.parametrize("word", ["train.schedule=multistep", "train.milestones=[150]"])
def test_milestones_and_their_schedule_go_together(word: str) -> None:
    with pytest.raises(TutelageError, match=r"train: milestones are the epochs .* give both, such as"):
        load_recipe(None, [word])
