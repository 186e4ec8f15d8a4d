"""The loop: what it promises of teacher and seed, exact resume in one process, and the faults it survives."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.stages import STEPS, network, same, small_context, small_splits, small_stage, train
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import LossRecipe
from tutelage.data.decode import UnreadableImage
from tutelage.data.joined import join
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import Splits, Subset
from tutelage.distillation.checkpoint import load_checkpoint, state_of
from tutelage.distillation.losses import TermBatch
from tutelage.distillation.objective import Objective, terms_of
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted
from tutelage.distillation.teacher import Teacher


class At(Silent):
    """Does something at one step, counted from 1 over all epochs."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.left, self.act = step, act
        self.predictions: list[str] = []

    def step(self, losses: dict[str, float], images: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def say(self, text: str) -> None:
        self.predictions.append(text)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def unbroken(path: Path, **settings: Any) -> Trained:
    return train(small_stage(**settings), small_context(path))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return unbroken(tmp_path_factory.mktemp("reference"))


# --- teacher and seed


def test_the_teachers_state_is_bit_identical_after_training(tmp_path: Path) -> None:
    model = network("test_resnet", 1)
    before = state_of(model.module)
    assert any("running_mean" in name for name in before)  # statistics that training mode would move
    train(small_stage(Teacher([model], torch.device("cpu"))), small_context(tmp_path))
    assert same(before, state_of(model.module))


def test_one_seed_gives_bit_identical_weights_and_another_does_not(
    tmp_path: Path, reference: Trained
) -> None:
    again = unbroken(tmp_path / "again")
    assert all(same(again.states[name], reference.states[name]) for name in ("last", "best", "ema"))
    other = unbroken(tmp_path / "other", seed=1)
    assert not same(other.states["last"], reference.states["last"])


def test_the_losses_of_a_tiny_run_are_those_of_record(reference: Trained) -> None:
    """Other CPUs sum in another order: 1e-3 leaves room for that, and for nothing else."""
    found = {name: [row["loss"][name] for row in reference.rows] for name in ("kl", "cross_entropy", "total")}
    found["val"] = [row["val"]["nll"] for row in reference.rows]
    assert found == {name: pytest.approx(values, abs=1e-3) for name, values in PINNED.items()}


PINNED = {
    "kl": [1.35345, 1.25770],
    "cross_entropy": [1.67884, 1.23947],
    "total": [3.03229, 2.49717],
    "val": [2.27517, 2.24550],
}


# --- stop and go on


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS])
def test_a_polite_kill_at_any_step_changes_nothing(tmp_path: Path, reference: Trained, step: int) -> None:
    with pytest.raises(Interrupted):
        train(small_stage(), small_context(tmp_path, At(step, ask_to_stop)))
    after = train(small_stage(), small_context(tmp_path))
    assert all(same(after.states[name], reference.states[name]) for name in ("last", "best", "ema"))
    assert [row["loss"] for row in after.rows] == [row["loss"] for row in reference.rows]
    assert [(row["stage"], row["epoch"]) for row in read_jsonl(tmp_path / "metrics.jsonl")] == [
        ("distill", 1),
        ("distill", 2),
    ]


@pytest.mark.parametrize("step", [1, 9])
def test_a_polite_kill_changes_nothing_with_a_share_of_labels(tmp_path: Path, step: int) -> None:
    splits = small_splits()
    few, rest = np.split(splits.train.indices, [20])
    some = replace(splits.train, indices=few)
    mixed = replace(splits, train=join(some, replace(splits.train, indices=rest, labels_hidden=True)))

    def share() -> Stage:
        return small_stage(splits=mixed, labelled_share=0.25)

    reference = train(share(), small_context(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(share(), small_context(tmp_path / "run", At(step, ask_to_stop)))
    resumed = train(share(), small_context(tmp_path / "run"))
    assert all(same(resumed.states[name], state) for name, state in reference.states.items())
    other = train(small_stage(splits=mixed), small_context(tmp_path / "other"))
    assert not same(other.states["last"], reference.states["last"])


def test_a_request_during_the_last_figures_is_not_lost(tmp_path: Path) -> None:
    class InVal(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == row["epochs"]:
                ask_to_stop()

    with pytest.raises(Interrupted):
        train(small_stage(), small_context(tmp_path, InVal()))
    assert load_checkpoint(tmp_path / "checkpoints" / "distill.safetensors")[1]["finished"]


def test_a_row_without_its_checkpoint_is_made_again_and_not_doubled(tmp_path: Path) -> None:
    """Killed between an epoch's row and its checkpoint, in the middle of a row."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage":"control","epoch":1}\n{"stage":"distill","epoch":1}\n{"sta'
    )
    train(small_stage(epochs=1), small_context(tmp_path))
    rows = [(row["stage"], row["epoch"]) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rows == [("control", 1), ("distill", 1)]


def test_checkpoints_come_as_often_as_asked(tmp_path: Path) -> None:
    moments: list[int] = []
    path = tmp_path / "checkpoints" / "distill.safetensors"

    class Watch(Silent):
        def step(self, losses: dict[str, float], images: int) -> None:
            moments.append(path.stat().st_mtime_ns if path.exists() else 0)

    train(small_stage(epochs=1, checkpoint_minutes=0), small_context(tmp_path, Watch()))
    assert len(set(moments)) == STEPS  # one after each step but the last; the first step has none before it


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    train(small_stage(epochs=1), small_context(tmp_path))
    other = replace(small_stage(), model=network("test_vit", 0))
    with pytest.raises(TutelageError, match=r"distill\.safetensors: does not fit the recipe"):
        train(other, small_context(tmp_path))


def test_a_head_fit_leaves_the_body_and_the_next_stage_trains_it(tmp_path: Path) -> None:
    """A stage that freezes the body once made the next one, whose optimizer passed over it, train the head only."""
    fit = replace(small_stage(None, epochs=1), name="head-fit", head_only=True)
    start = state_of(fit.model.module)
    train(fit, small_context(tmp_path))
    changed = {name for name, tensor in state_of(fit.model.module).items() if not tensor.equal(start[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    after_fit = state_of(fit.model.module)
    train(replace(small_stage(epochs=1), model=fit.model), small_context(tmp_path))
    assert not fit.model.module.state_dict()["conv_stem.weight"].equal(after_fit["conv_stem.weight"])


# --- faults


class Spoiling(Objective):
    """Spoils the loss at some steps, counted from 1."""

    def __init__(self, steps: set[int], spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__(terms_of(LossRecipe()))
        self.steps, self.spoil, self.at = steps, spoil, 0

    def forward(self, batch: TermBatch, student: torch.nn.Module | None = None) -> dict[str, Tensor]:
        parts = super().forward(batch, student)
        self.at += 1
        if self.at in self.steps:
            # what a broken batch does to running statistics
            student.bn1.running_mean = torch.full_like(student.bn1.running_mean, torch.nan)
            parts["loss"] = self.spoil(parts["loss"])
        return parts


SPOILT = {
    "nan": lambda loss: loss * torch.nan,
    "inf": lambda loss: loss + torch.inf,
    "gradient": lambda loss: loss + (loss - loss).sqrt(),  # 0, whose slope is infinite
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_step_is_skipped_counted_and_named(tmp_path: Path, kind: str) -> None:
    progress = At(0, lambda: None)
    trained = train(
        small_stage(objective=Spoiling({2, 3}, SPOILT[kind]), max_bad_steps=2),
        small_context(tmp_path, progress),
    )
    assert trained.rows[0]["bad_steps"] == 2
    assert progress.predictions[0].startswith(
        "distill, epoch 1, step 2: the loss or its gradient is not finite"
    )
    assert all(tensor.isfinite().all() for tensor in trained.states["last"].values())


def test_too_many_bad_steps_stop_the_run_with_the_last_good_checkpoint(
    tmp_path: Path, reference: Trained
) -> None:
    bad = small_stage(
        objective=Spoiling(set(range(9, 99)), SPOILT["nan"]), max_bad_steps=3, checkpoint_minutes=0
    )
    with pytest.raises(TutelageError, match=r"step 6: 4 steps had a loss that is not finite.*train\.lr"):
        train(bad, small_context(tmp_path))
    counters = load_checkpoint(tmp_path / "checkpoints" / "distill.safetensors")[1]["counters"]
    assert (counters["updates"], counters["bad_steps"]) == (8, 0)
    mended = train(small_stage(), small_context(tmp_path))
    assert same(mended.states["last"], reference.states["last"])


def test_weights_that_overflow_end_in_one_line_and_are_not_kept(tmp_path: Path) -> None:
    stage = small_stage(epochs=1)

    class Overflow(Silent):
        def step(self, losses: dict[str, float], images: int) -> None:
            with torch.no_grad():
                stage.model.module.classifier.weight.fill_(torch.inf)

    with pytest.raises(TutelageError, match="not finite"):
        train(stage, small_context(tmp_path, Overflow()))
    assert not (tmp_path / "checkpoints" / "distill.safetensors").exists()


class Failing(ImageSet):
    """A set of which one image fails in a given way, once there is a file."""

    def __init__(self, subset: Subset, flag: Path, fail: Callable[[str], None]) -> None:
        images = subset.images
        super().__init__(images.name, images.origin, list(images.ids), images.classes, images.labels)
        self.source, self.flag, self.fail, self.victim = images, flag, fail, int(subset.indices[5])

    def image(self, index: int) -> Image.Image:
        if index == self.victim and self.flag.exists():
            self.fail(self.ids[index])
        return self.source.image(index)


def failing_stage(flag: Path, fail: Callable[[str], None], role: str = "train") -> Stage:
    splits = small_splits()
    subset = getattr(splits, role)
    broken: Splits = replace(splits, **{role: replace(subset, images=Failing(subset, flag, fail))})
    return small_stage(splits=broken)


def unreadable(image_id: str) -> None:
    raise UnreadableImage(image_id, "truncated")


@pytest.mark.parametrize("role", ["train", "val"])
def test_an_image_that_turns_unreadable_is_counted_and_passed_over(tmp_path: Path, role: str) -> None:
    flag = tmp_path / "broken"
    context = small_context(tmp_path, At(STEPS, flag.touch), max_bad=1)
    trained = train(failing_stage(flag, unreadable, role), context)
    assert len(trained.rows) == 2
    assert list(context.loading.bad.reasons.values()) == ["truncated"]


def test_more_unreadable_images_than_allowed_end_in_one_line(tmp_path: Path, reference: Trained) -> None:
    flag = tmp_path / "broken"
    with pytest.raises(TutelageError, match=r"data\.max_bad_images=0: 1 cannot be decoded.*digit-"):
        train(failing_stage(flag, unreadable), small_context(tmp_path, At(STEPS, flag.touch)))
    mended = train(small_stage(), small_context(tmp_path))
    assert same(mended.states["last"], reference.states["last"])


def die(_image_id: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_dies_ends_in_one_line(tmp_path: Path, reference: Trained) -> None:
    flag = tmp_path / "broken"
    with pytest.raises(TutelageError, match=r"a loader process died.*data\.workers"):
        train(failing_stage(flag, die), small_context(tmp_path, At(STEPS, flag.touch), workers=1))
    mended = train(small_stage(), small_context(tmp_path))
    assert same(mended.states["last"], reference.states["last"])


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, reference: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 1e10))
    monkeypatch.setattr(time, "time_ns", lambda: int(jumps.uniform(-1e18, 1e19)))
    trained = unbroken(tmp_path)
    assert same(trained.states["last"], reference.states["last"])
    assert all(0 < row["seconds"] < 600 for row in trained.rows)


def test_a_head_warmup_leaves_the_body_with_its_statistics(tmp_path: Path) -> None:
    """The body was frozen, and its BatchNorm statistics moved all the same."""
    stage = small_stage(epochs=1, head_warmup_epochs=1)
    start = state_of(stage.model.module)
    after = train(stage, small_context(tmp_path)).states["last"]
    assert {name for name in after if not after[name].equal(start[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("metric", ["top1", "nll"])
def test_the_best_epoch_is_that_of_the_metric(
    tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was by top-1, whatever the selection went by."""
    found = iter([{"top1": 70.0, "nll": 1.0}, {"top1": 60.0, "nll": 0.5}])
    monkeypatch.setattr("tutelage.distillation.loop.validate", lambda *_: next(found) | {"loss": 0.0})
    stage = replace(small_stage(epochs=2, ema=0), metric=metric)
    states: list[dict[str, Tensor]] = []

    class EachEpoch(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            states.append(state_of(stage.model.module))

    best = train(stage, small_context(tmp_path, EachEpoch())).states["best"]
    assert same(best, states[0 if metric == "top1" else 1])


def test_the_rate_of_record_is_the_head_s_under_layer_decay(tmp_path: Path) -> None:
    """It was the lowest layer's."""
    stage = small_stage(epochs=1, layer_decay=0.5, schedule="constant", lr=1e-3)
    assert train(stage, small_context(tmp_path)).rows[0]["lr"] == pytest.approx(1e-3)
