"""Loss scaling for fp16, here on a CPU with computations in float32: a scale that is a power of two changes no bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distillation.test_loop import At, ask_to_stop
from tests.helpers.stages import network, same, small_context, small_stage, train
from timm.layers import convert_sync_batchnorm
from torch.amp import GradScaler

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress
from tutelage.core.recipe import TrainRecipe
from tutelage.core.runtime import Runtime, autocast
from tutelage.distillation import loop
from tutelage.distillation.checkpoint import load_checkpoint
from tutelage.distillation.stage import Trained
from tutelage.distillation.stop import Interrupted
from tutelage.pipeline.context import Context


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "autocast", lambda self: autocast(self.device, "fp32"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(small_stage(), small_context(tmp_path_factory.mktemp("plain")))


def context(path: Path, progress: Progress | None = None) -> Context:
    return small_context(path, *([progress] if progress else [])).in_precision("fp16")


def scale_of(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    monkeypatch.setattr(loop, "GradScaler", lambda device: GradScaler(device, **settings))


def meta(path: Path) -> dict[str, Any]:
    return load_checkpoint(path / "checkpoints" / "distill.safetensors")[1]


def test_a_scale_of_a_power_of_two_changes_no_bit(tmp_path: Path, plain: Trained) -> None:
    scaled = train(small_stage(), context(tmp_path))
    assert all(same(scaled.states[name], plain.states[name]) for name in ("last", "best", "ema"))
    assert [row["loss"] for row in scaled.rows] == [row["loss"] for row in plain.rows]


def test_the_scale_is_part_of_the_checkpoint(
    tmp_path: Path, plain: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_of(monkeypatch, init_scale=4.0, growth_interval=3)
    with pytest.raises(Interrupted):
        train(small_stage(), context(tmp_path, At(5, ask_to_stop)))
    assert meta(tmp_path)["scaler"]["scale"] == 8.0
    assert meta(tmp_path)["scaler"]["_growth_tracker"] == 2
    with pytest.raises(Interrupted):
        train(small_stage(), context(tmp_path, At(2, ask_to_stop)))
    assert meta(tmp_path)["scaler"]["scale"] == 16.0  # after step 6
    resumed = train(small_stage(), context(tmp_path))
    assert same(resumed.states["last"], plain.states["last"])


def test_a_scale_that_is_too_high_is_lowered_and_no_bad_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_of(monkeypatch, init_scale=2.0**127)  # a loss above 2 is infinite with it
    trained = train(small_stage(max_bad_steps=0), context(tmp_path))
    assert [row["bad_steps"] for row in trained.rows] == [0, 0]
    assert all(value.isfinite().all() for value in trained.states["last"].values())
    assert math.isfinite(trained.rows[-1]["loss"]["total"])


def test_gradients_that_no_scale_explains_are_bad_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_of(monkeypatch, init_scale=0.5)
    stage = small_stage(max_bad_steps=0)
    next(stage.model.module.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TutelageError, match="not finite"):
        train(stage, context(tmp_path))


# --- what a CPU does not have


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"precision": "fp16"}, "train.precision=fp16: needs a CUDA GPU, and this run is on cpu"),
        ({"sync_batchnorm": True}, "train.sync_batchnorm=true: PyTorch has it for CUDA GPUs only"),
    ],
)
def test_what_a_cpu_does_not_have_is_refused(
    settings: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "world_size", 2)
    with pytest.raises(TutelageError) as raised:
        Runtime.start().check(TrainRecipe.model_validate(settings))
    assert str(raised.value).startswith(line)


def test_synchronised_batchnorm_has_the_parameters_and_answers_of_the_plain_one() -> None:
    model, plain = (
        network("test_efficientnet", 0).module.eval(),
        network("test_efficientnet", 0).module.eval(),
    )
    parameters = [id(parameter) for parameter in model.parameters()]
    model = convert_sync_batchnorm(model)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert list(model.state_dict()) == list(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), plain(images))
