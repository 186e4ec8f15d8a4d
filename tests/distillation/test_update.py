"""Steps that the host need not wait for, steps that are undone, and batches that are trained in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.stages import STEPS, network, same, small_context, small_stage, train
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import TrainRecipe, parse_recipe
from tutelage.core.runtime import Runtime, algorithms
from tutelage.data.loading import Loading
from tutelage.distillation import loop, optim
from tutelage.distillation.checkpoint import pack_optimizer, unpack_optimizer
from tutelage.distillation.loop import Trainer
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective
from tutelage.distillation.stage import Trained
from tutelage.distillation.stop import Interrupted


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop works as on CUDA: with a fused optimizer, which CPUs have too, and figures that are read seldom."""
    monkeypatch.setattr(optim, "fused", lambda student, settings: True)
    start = Trainer.__init__

    def seldom(self: Trainer, *arguments: Any) -> None:
        start(self, *arguments)
        self.read_every = loop.READ_EVERY

    monkeypatch.setattr(Trainer, "__init__", seldom)


def trainer(path: Path, **settings: Any) -> Trainer:
    return Trainer(
        small_stage(**settings), Runtime.start(), path / "none", Loading(0), Silent(), lambda rows: None
    )


@pytest.mark.usefixtures("as_on_cuda")
def test_figures_that_are_read_seldom_are_those_of_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = train(small_stage(), small_context(tmp_path / "seldom"))
    monkeypatch.setattr(loop, "READ_EVERY", 1)
    each = train(small_stage(), small_context(tmp_path / "each"))
    assert [row["loss"] for row in seldom.rows] == [row["loss"] for row in each.rows]
    assert [row["train_top1"] for row in seldom.rows] == [row["train_top1"] for row in each.rows]
    assert all(same(seldom.states[name], each.states[name]) for name in ("last", "best", "ema"))


class Bad(CrossEntropy):
    """A cross-entropy that is not a number in one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def forward(self, *arguments: Any) -> Tensor:
        self.left -= 1
        loss = super().forward(*arguments)
        return loss * float("nan") if self.left == 0 else loss


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "fused", lambda student, settings: fused)
    one = trainer(tmp_path, teacher=None, objective=Objective([Bad(3)]))
    assert one.updater.skips_on_device == fused
    one.set_modes()
    batches = iter(one.batches())
    for _ in range(2):
        one.train_step(next(batches))
    weights = {name: value.clone() for name, value in one.student.state_dict().items()}
    moments = pack_optimizer(one.optimizer)[0]
    moments = {name: value.clone() for name, value in moments.items()}
    one.train_step(next(batches))
    assert same(weights, one.student.state_dict())
    assert same(moments, pack_optimizer(one.optimizer)[0])
    one.train_step(next(batches))
    assert not same(weights, one.student.state_dict())
    assert one.read()
    assert (one.at.bad_steps, one.at.images) == (1, 3 * 16)
    assert all(value.isfinite().all() for value in one.student.state_dict().values())


def test_a_resume_does_not_take_over_how_another_device_computes_steps() -> None:
    module = network("test_efficientnet", 0).module
    settings = TrainRecipe(epochs=1, lr=1e-3)
    there = torch.optim.AdamW(module.parameters(), fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    there.step()
    here = torch.optim.AdamW(module.parameters(), lr=settings.lr)
    unpack_optimizer(here, *pack_optimizer(there))
    assert not here.param_groups[0]["fused"]
    assert here.state[next(module.parameters())]["step"] == 1


# --- parts of a batch


def in_parts(path: Path, parts: int, **settings: Any) -> Trained:
    """Train without dropout, and with the statistics of the start: each part would have its own."""
    stage = small_stage(
        accumulate=parts, frozen_batchnorm=True, optimizer="sgd", lr=0.05, clip_grad=1.0, **settings
    )
    for module in stage.model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stage.model.module.drop_rate = 0.0
    return train(stage, small_context(path))


def test_a_batch_in_parts_takes_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    whole, parts = in_parts(tmp_path / "whole", 1), in_parts(tmp_path / "parts", 4)
    for row, other in zip(whole.rows, parts.rows, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert other["step"] == row["step"]
        assert other["train_top1"] == row["train_top1"]
    for name, weight in whole.states["last"].items():
        assert torch.allclose(parts.states["last"][name].float(), weight.float(), atol=1e-5), name


def test_a_batch_in_parts_is_resumed_bit_by_bit(tmp_path: Path) -> None:
    from tests.distillation.test_loop import At, ask_to_stop

    whole = train(small_stage(accumulate=2), small_context(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(small_stage(accumulate=2), small_context(tmp_path / "run", At(STEPS + 2, ask_to_stop)))
    resumed = train(small_stage(accumulate=2), small_context(tmp_path / "run"))
    assert all(same(resumed.states[name], state) for name, state in whole.states.items())


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"batch_size": 10, "accumulate": 4},
            "make batch_size a multiple of it, such as train.batch_size=12",
        ),
        ({"batch_size": "auto", "accumulate": 4}, "give a number, such as train.batch_size=32"),
    ],
)
def test_parts_that_are_not_equal_are_refused(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(TutelageError) as raised:
        parse_recipe({"train": keys})
    assert line in str(raised.value)


# --- algorithms


def test_a_deterministic_run_leaves_the_settings_of_the_program_as_they_were() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    for wanted in (True, False):
        with algorithms(wanted):
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cudnn.benchmark == (not wanted)
        assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


def test_an_operation_without_a_deterministic_algorithm_is_one_line() -> None:
    with pytest.raises(TutelageError) as raised, algorithms(True):
        raise RuntimeError(
            "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set ..."
        )
    assert str(raised.value) == (
        "train.deterministic: upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation; "
        "use train.deterministic=false"
    )
