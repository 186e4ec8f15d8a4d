"""Memory that runs out in a training: the batch that fits is found, and the checkpoint stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.small_memory import CPU, GPU, takes
from tests.helpers.stages import network, same, small_context, small_stage, train
from timm.models import EfficientNet, ResNet

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.runtime import Runtime, alone, gathered
from tutelage.data.loading import BadImages, Loading
from tutelage.distillation.batch_memory import largest_batch
from tutelage.distillation.checkpoint import load_checkpoint, state_of
from tutelage.distillation.lr_range import range_test
from tutelage.distillation.teacher import Teacher

LOADING = Loading(0, BadImages(0))


@pytest.mark.parametrize(("fitting", "found"), [(64, 16), (15, 8), (2, 2), (1, 0)])
def test_the_largest_batch_that_a_stage_can_be_trained_with(
    monkeypatch: pytest.MonkeyPatch, fitting: int, found: int
) -> None:
    sizes = takes(monkeypatch, fitting, EfficientNet, training=True)
    stage = small_stage()
    sizes.clear()
    before = torch.get_rng_state()
    assert largest_batch(stage, Runtime.start(), LOADING, 16) == found
    assert torch.equal(torch.get_rng_state(), before)
    assert [size for size in sizes if size > 1][:1] == [16]


def test_the_answers_of_the_teacher_count(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher([network("test_resnet", 1)], torch.device("cpu"))
    takes(monkeypatch, 5, ResNet)
    assert largest_batch(small_stage(teacher), Runtime.start(), LOADING, 16) == 4
    assert largest_batch(small_stage(None), Runtime.start(), LOADING, 16) == 16


def test_the_moments_of_the_optimizer_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made in the first step, so that the second one is the first that may not fit."""
    steps = []
    step = torch.optim.AdamW.step

    def full(self: torch.optim.AdamW, *arguments: Any) -> Any:
        steps.append(bool(self.state))
        if self.state and len(steps) < 3:
            raise GPU
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    assert largest_batch(small_stage(None), Runtime.start(), LOADING, 16) == 8
    assert steps == [False, True, False, True]


def test_a_search_does_not_wait_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    rows = torch.ones(2, 3)
    with alone():
        assert gathered(rows) is rows
    with pytest.raises(ValueError, match="process group"):
        gathered(rows)


@pytest.mark.parametrize("error", [GPU, CPU])
def test_a_training_that_does_not_fit_names_the_batch_that_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: RuntimeError
) -> None:
    takes(monkeypatch, 5, EfficientNet, error, training=True)
    with pytest.raises(TutelageError) as raised:
        train(small_stage(), small_context(tmp_path))
    assert str(raised.value).startswith("train.batch_size=16: distill on cpu: out of memory (")
    assert "; a batch of 4 fits: begin a new run with train.batch_size=4, or resume" in str(raised.value)
    with pytest.raises(TutelageError, match=r"^train\.batch_size=16: lr-range on cpu: .* a batch of 4 fits"):
        range_test(small_stage(None), Runtime.start(), tmp_path / "none", loading=LOADING, progress=Silent())


def test_no_batch_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = small_stage()
    takes(monkeypatch, 1, EfficientNet, training=True)
    with pytest.raises(
        TutelageError, match="no smaller batch fits: use smaller models, or a smaller teacher"
    ):
        train(stage, small_context(tmp_path))


def test_it_may_be_unknown_what_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    takes(monkeypatch, 5, EfficientNet, training=True)
    monkeypatch.setattr("tutelage.distillation.batch_memory.train_loader", lambda *_, **__: 1 / 0)
    with pytest.raises(
        TutelageError, match=r"use a smaller batch: begin a new run with train\.batch_size=8,"
    ):
        train(small_stage(), small_context(tmp_path))


def test_the_checkpoint_stays_usable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unbroken = train(small_stage(), small_context(tmp_path / "unbroken"))
    context = small_context(tmp_path / "broken")
    with monkeypatch.context() as patched:
        sizes = takes(patched, 16, EfficientNet)

        class Fuller(Silent):
            """A step of the second epoch is the first one that finds too little memory."""

            def epoch(self, row: dict[str, Any]) -> None:
                takes(patched, 15, EfficientNet, training=True)

        stage = small_stage()
        context = small_context(tmp_path / "broken", Fuller())
        with pytest.raises(TutelageError, match="a batch of 8 fits"):
            train(stage, context)
        assert 16 in sizes
    _, meta = load_checkpoint(context.checkpoint(small_stage()))
    assert (meta["counters"]["epoch"], meta["finished"]) == (1, False)
    resumed = train(small_stage(), small_context(tmp_path / "broken"))
    assert resumed.rows[1]["loss"] == unbroken.rows[1]["loss"]
    for name, state in unbroken.states.items():
        assert same(state, resumed.states[name])


def test_a_head_is_trained_alone_in_the_search_too() -> None:
    stage = replace(small_stage(None), head_only=True)
    before = state_of(stage.model.module)
    assert largest_batch(stage, Runtime.start(), LOADING, 16) == 16
    after = state_of(stage.model.module)
    moved = {
        name for name, tensor in before.items() if not torch.equal(tensor, after[name]) and "weight" in name
    }
    assert moved == {"classifier.weight"}
