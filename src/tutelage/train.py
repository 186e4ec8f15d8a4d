"""The loop. One stage trains one network; every stage of a run goes through here."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.checkpoint import (
    State,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    state_of,
    unpack_optimizer,
)
from tutelage.context import Context
from tutelage.data.loading import normalise, train_loader
from tutelage.data.mix import draw_mix
from tutelage.data.splits import Part
from tutelage.data.views import ViewPolicy
from tutelage.errors import TutelageError
from tutelage.evaluate import predict_logits
from tutelage.measure.quality import quality
from tutelage.models import Model
from tutelage.recipe import TrainRecipe, ViewRecipe
from tutelage.run import Run, append_jsonl, read_jsonl, write_text
from tutelage.task import Batch, Task
from tutelage.teacher import Teacher

TIMM_SCHEDULES = {"cosine": "cosine", "linear": "poly", "constant": "constant"}


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop, and everything needed to go on is on the disk."""


@dataclass(frozen=True)
class Stage:
    """One training of one network.

    Attributes:
        name: teacher-fit, head-fit, control or distill: under which metrics and checkpoints are kept.
        model: what learns; its module is trained in place.
        settings: of the loop.
        view: of the augmentation.
        task: what is minimised.
        train: images to learn from.
        val: images to choose by.
        head_index: (data classes,) head index of each class of the data.
        teacher: whose targets are matched; None: labels only.
        val_targets: (N, C) teacher's logits on val, for the loss there.
        head_only: the body is frozen and in eval mode.
    """

    name: str
    model: Model
    settings: TrainRecipe
    view: ViewRecipe
    task: Task
    train: Part
    val: Part
    head_index: np.ndarray
    teacher: Teacher | None = None
    val_targets: Tensor | None = None
    head_only: bool = False


@dataclass(frozen=True)
class Trained:
    """What a stage leaves: one row an epoch, and the states worth weighing."""

    rows: list[dict[str, Any]]
    states: dict[str, State]  # last, best, and ema where there is one


@dataclass
class Counters:
    """Where the loop is; travels in the checkpoint."""

    epoch: int = 0
    step: int = 0  # in the epoch
    updates: int = 0  # in all
    bad_steps: int = 0
    best: float = -math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)  # over the epoch so far
    images: int = 0
    correct: int = 0
    seconds: float = 0.0


def train(stage: Stage, context: Context) -> Trained:
    """Train a stage to its end, from its checkpoint where there is one.

    Raises:
        Interrupted: a signal asked to stop; the checkpoint is written.
        TutelageError: too many steps had a loss that is not finite.
    """
    loop = _Loop(stage, context)
    if loop.finished:
        return loop.result()
    with _stop_requests() as stop:
        context.progress.begin(stage.name, stage.settings.epochs * loop.steps)
        while loop.at.epoch < stage.settings.epochs:
            loop.run_epoch(stop)
        context.progress.end()
    loop.save(finished=True)
    return loop.result()


class _Loop:
    def __init__(self, stage: Stage, context: Context) -> None:
        self.stage, self.context = stage, context
        self.settings, self.accelerator = stage.settings, context.accelerator
        self.path = context.run.checkpoints / f"{stage.name}.safetensors"
        self.at = Counters()
        self.best: State = {}
        self.finished = False
        self.policy = ViewPolicy(stage.view)
        self.specs = [stage.model.input, *(stage.teacher.inputs if stage.teacher else [])]
        self.steps = len(stage.train) // self.settings.batch_size
        if self.steps == 0:
            raise TutelageError(
                f"train.batch_size: {self.settings.batch_size} is more than the {len(stage.train)} training images"
            )
        self.head_index = torch.from_numpy(stage.head_index).to(self.accelerator.device)
        module = stage.model.module.to(self.accelerator.device)
        self.ema = ModelEmaV3(module, self.settings.ema, use_warmup=True) if self.settings.ema else None
        optimizer = _optimizer(module, self.settings, stage.head_only)
        self.schedule = _schedule(optimizer, self.settings, self.steps)
        self._resume(module, optimizer)
        self.module = module
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.saved_at = time.monotonic()

    # --- one epoch

    def run_epoch(self, stop: threading.Event) -> None:
        settings, at = self.settings, self.at
        loader = train_loader(
            self.stage.train,
            self.policy,
            self.specs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=at.epoch,
            start_step=at.step,
            workers=self.context.workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            bad=self.context.bad,
        )
        self._set_modes()
        started = time.monotonic()
        for raw in loader:
            self._step(raw)
            now = time.monotonic()
            at.seconds, started = at.seconds + now - started, now
            if self._must_stop(stop):
                self.save()
                raise Interrupted
            if now - self.saved_at > 60 * settings.checkpoint_minutes:
                self.save()
        self._close_epoch()

    def _step(self, raw: dict[str, Any]) -> None:
        at = self.at
        torch.manual_seed(
            _mix_seed(self.settings.seed, self.stage.name, at.updates)
        )  # dropout: pure in the step
        batch = self._batch(raw)
        self.schedule.step_update(at.updates)
        with self.context.autocast():
            parts = self.stage.task(self.wrapped, batch)
        at.step, at.updates = at.step + 1, at.updates + 1
        if self._finite(parts["loss"]):
            self._update(parts["loss"])
            self._count(parts, batch)
        else:
            self._bad_step()
        self.context.progress.step({k: v / max(at.images, 1) for k, v in at.sums.items()}, len(batch.labels))

    def _update(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        if self.settings.clip_grad:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.module, step=self.at.updates)

    def _batch(self, raw: dict[str, Any]) -> Batch:
        device = self.accelerator.device
        images = [normalise(x, spec, device) for x, spec in zip(raw["images"], self.specs, strict=True)]
        labels = _to_head(raw["label"].to(device), self.head_index)
        other, lam = labels, 1.0
        seed = _mix_seed(self.settings.seed, "mix", self.at.updates)
        mix = draw_mix(self.stage.view, len(labels), seed)
        if mix:
            images = [mix.images(x) for x in images]
            other, lam = labels[mix.permutation.to(device)], mix.lam
        targets = self.stage.teacher.targets(images[1:]) if self.stage.teacher else None
        return Batch(images[0], labels, other, lam, targets)

    def _count(self, parts: dict[str, Tensor], batch: Batch) -> None:
        at, size = self.at, len(batch.labels)
        for name, value in parts.items():
            if name != "output":
                at.sums[name] = at.sums.get(name, 0.0) + value.item() * size
        at.images += size
        at.correct += int((parts["output"].argmax(1) == batch.labels).sum())

    def _finite(self, loss: Tensor) -> bool:
        """The same answer in every process, so that none waits for the others."""
        return bool(torch.isfinite(self.accelerator.reduce(loss.detach(), "mean")))

    def _bad_step(self) -> None:
        at = self.at
        at.bad_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        where = f"{self.stage.name}, epoch {at.epoch + 1}, step {at.step}"
        self.context.progress.say(f"{where}: the loss is not finite; step skipped ({at.bad_steps} so far)")
        if at.bad_steps > self.settings.max_bad_steps:
            raise TutelageError(
                f"{where}: {at.bad_steps} steps had a loss that is not finite; the last good checkpoint is "
                f"kept in {self.path.parent}; lower train.lr or set train.clip_grad or train.precision=fp32"
            )

    # --- the end of an epoch

    def _close_epoch(self) -> None:
        at = self.at
        at.epoch, at.step = at.epoch + 1, 0
        row = self._row()
        score = row["val"]["top1"]
        if score > at.best:
            at.best, self.best = score, state_of(self.module)
        at.rows.append(row)
        if self.context.writes:
            append_jsonl(self.context.run.metrics, row)
        self.context.progress.epoch(row)
        at.sums, at.images, at.correct, at.seconds = {}, 0, 0, 0.0
        if at.epoch < self.settings.epochs:
            self.save()

    def _row(self) -> dict[str, Any]:
        at = self.at
        names = sorted(at.sums)
        totals = torch.tensor([*(at.sums[n] for n in names), at.images, at.correct], dtype=torch.float64)
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum").cpu()
        images, correct = max(totals[-2].item(), 1.0), totals[-1].item()
        loss = {name: totals[i].item() / images for i, name in enumerate(names)}
        return {
            "stage": self.stage.name,
            "epoch": at.epoch,
            "epochs": self.settings.epochs,
            "step": at.updates,
            "loss": {"total": loss.pop("loss", None), **loss},
            "train_top1": 100 * correct / images,
            "val": self._val(self.module),
            "ema_val": self._val(self.ema.module) if self.ema else None,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images / max(at.seconds, 1e-9),
            "seconds": at.seconds,
            "bad_steps": at.bad_steps,
        }

    def _val(self, module: nn.Module) -> dict[str, float]:
        stage = self.stage
        said = predict_logits(
            module,
            stage.model.input,
            stage.val,
            self.accelerator,
            workers=self.context.workers,
            bad=self.context.bad,
        )
        labels = _to_head(torch.from_numpy(stage.val.labels)[said.index], self.head_index.cpu())
        figures = quality(said.logits, labels)
        targets = stage.val_targets[said.index] if stage.val_targets is not None else None
        parts = stage.task.parts(said.logits, Batch(said.logits, labels, labels, 1.0, targets))
        loss = {name: value.item() for name, value in parts.items()}
        return {"top1": figures.top1, "nll": figures.nll, "loss": sum(loss.values()), **loss}

    # --- modes, state

    def _set_modes(self) -> None:
        stage, epoch = self.stage, self.at.epoch
        head_only = stage.head_only or epoch < self.settings.head_warmup_epochs
        self.wrapped.train()
        if stage.head_only or self.settings.frozen_batchnorm:
            for module in self.module.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        head = {id(p) for p in self.module.get_classifier().parameters()}
        for parameter in self.module.parameters():
            parameter.requires_grad_(not head_only or id(parameter) in head)

    def _must_stop(self, stop: threading.Event) -> bool:
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        flag = torch.tensor(float(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint; a finished stage needs no optimizer."""
        self.finished = finished
        self.saved_at = time.monotonic()
        if not self.context.writes:
            return
        groups: dict[str, State] = {"model": self.module.state_dict(), "best": self.best}
        if self.ema:
            groups["ema"] = self.ema.module.state_dict()
        numbers: list[list[str]] = []
        if not finished:
            groups["optimizer"], numbers = pack_optimizer(_plain(self.optimizer))
        meta = {
            "finished": finished,
            "numbers": numbers,
            "counters": {**vars(self.at), "best": _jsonable(self.at.best)},
        }
        save_checkpoint(self.path, groups, meta)

    def _resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not self.path.exists():
            return
        groups, meta = load_checkpoint(self.path)
        counters = meta["counters"]
        self.at = Counters(
            **{**counters, "best": -math.inf if counters["best"] is None else counters["best"]}
        )
        self.best, self.finished = groups.get("best", {}), meta["finished"]
        module.load_state_dict(groups["model"])
        if self.ema:
            self.ema.module.load_state_dict(groups["ema"])
        if not self.finished:
            unpack_optimizer(optimizer, groups["optimizer"], meta["numbers"])
        if self.context.writes:
            _rewrite_metrics(self.context.run, self.stage.name, self.at.rows)

    def result(self) -> Trained:
        """The stage's rows and states."""
        states = {"last": state_of(self.module), "best": self.best}
        if self.ema:
            states["ema"] = state_of(self.ema.module)
        return Trained(self.at.rows, states)


def _optimizer(module: nn.Module, settings: TrainRecipe, head_only: bool) -> torch.optim.Optimizer:
    layer_decay = settings.layer_decay if settings.layer_decay < 1 and not head_only else None
    try:
        return create_optimizer_v2(
            module,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=layer_decay,
        )
    except (ValueError, AssertionError) as error:
        raise TutelageError(f"train.optimizer: {settings.optimizer!r} is none of timm's ({error})") from None


def _schedule(optimizer: torch.optim.Optimizer, settings: TrainRecipe, steps: int) -> Any:
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=TIMM_SCHEDULES[settings.schedule],
        num_epochs=settings.epochs,
        decay_rate=1.0,
        min_lr=settings.min_lr,
        warmup_lr=settings.lr / 100,
        warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]  # fractions of an epoch are fine
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule


def _to_head(labels: Tensor, head_index: Tensor) -> Tensor:
    return torch.where(labels >= 0, head_index[labels.clamp_min(0)], labels)


def _mix_seed(seed: int, name: str, step: int) -> int:
    return int(np.random.SeedSequence([seed, step, *name.encode()]).generate_state(1)[0])


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rewrite_metrics(run: Run, stage: str, rows: list[dict[str, Any]]) -> None:
    """Rows written after the checkpoint was made will be made again."""
    others = [row for row in read_jsonl(run.metrics) if row["stage"] != stage]
    write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in [*others, *rows]))


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Ctrl-C and a polite kill set a flag; a second Ctrl-C ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
