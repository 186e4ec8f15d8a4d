"""The training loop. One stage trains one network; every stage of a run goes through here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.progress import Progress, Silent
from tutelage.core.runtime import Runtime, to_device
from tutelage.data.loading import Loading, normalise, train_loader
from tutelage.data.mix import draw_mix
from tutelage.data.views import ViewPolicy
from tutelage.data.workers import dead_workers_named
from tutelage.distillation.batch_memory import within_memory
from tutelage.distillation.checkpoint import (
    State,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    state_of,
    unpack_optimizer,
)
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.metrics import Counters, Pending, step_figures
from tutelage.distillation.optim import make_optimizer, make_schedule
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted, stop_requests
from tutelage.distillation.update import Updater, parts_of
from tutelage.distillation.validation import labels_in_head, validate
from tutelage.evaluation.quality import merit
from tutelage.models.depthwise import quick_depthwise

READ_EVERY = 50  # steps between two transfers of figures from a GPU, which wait for it
OnEpoch = Callable[[list[dict[str, Any]]], None]


@dead_workers_named()
def train(
    stage: Stage,
    runtime: Runtime,
    checkpoint: Path,
    *,
    loading: Loading | None = None,
    progress: Progress | None = None,
    on_epoch: OnEpoch = lambda rows: None,
) -> Trained:
    """Train a stage to its end; where there is a checkpoint, resume from it.

    Args:
        stage: the model, the data and the settings.
        runtime: device, processes, precision.
        checkpoint: the file to resume from, written at least once an epoch.
        loading: how images are loaded; None: the first one that cannot be decoded stops the run.
        progress: receives steps and epochs.
        on_epoch: called with the rows of all epochs so far, once when the stage begins or is resumed and then after
            each epoch, in the first process only.

    Raises:
        Interrupted: a signal asked to stop; the checkpoint is written.
        TutelageError: too many steps had a loss that is not finite, the checkpoint does not fit, or memory ran out.
    """
    loading, progress = loading or Loading(), progress or Silent()

    def trained() -> Trained:
        trainer = Trainer(stage, runtime, checkpoint, loading, progress, on_epoch)
        if not trainer.finished:
            progress.begin(stage.name, stage.settings.epochs * trainer.steps)
            try:
                trainer.run()
            finally:
                progress.end()
                runtime.accelerator.free_memory()  # accelerate keeps references to every stage's network
        return trainer.result()

    return within_memory(stage, runtime, loading, trained)


class Trainer:
    """Trains one stage: epochs of steps, an evaluation on val after each epoch, and checkpoints.

    Everything random is a function of the seed and of the position in the loop, so that a run which was stopped and
    resumed ends with the same weights, bit for bit.
    """

    def __init__(
        self,
        stage: Stage,
        runtime: Runtime,
        path: Path,
        loading: Loading,
        progress: Progress,
        on_epoch: OnEpoch,
    ) -> None:
        settings = stage.settings
        self.stage, self.settings, self.runtime = stage, settings, runtime
        self.path, self.loading, self.progress, self.on_epoch = path, loading, progress, on_epoch
        self.steps = stage.steps or len(stage.train) // settings.batch_size
        if self.steps == 0:
            raise TutelageError(
                f"train.batch_size: {settings.batch_size} is more than the {len(stage.train)} training images"
            )
        if settings.batch_size // runtime.world_size % settings.accumulate:
            raise TutelageError(
                f"train.batch_size={settings.batch_size}: must be a multiple of {runtime.world_size} processes with "
                f"train.accumulate={settings.accumulate}, such as {8 * runtime.world_size * settings.accumulate}"
            )
        self.specs = [stage.model.input_spec, *(stage.teacher.input_specs if stage.teacher else [])]
        self.head_index = torch.from_numpy(stage.head_index).to(runtime.device)
        # an earlier stage may have frozen parameters that this one trains, and optimizers leave out frozen ones
        self.student = stage.model.module.to(runtime.device).requires_grad_(True)
        if settings.sync_batchnorm and runtime.world_size > 1:
            self.student = convert_sync_batchnorm(self.student)  # its layers are exchanged in place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(settings.seed, f"{stage.name} terms", 0))
            self.distiller = Distiller(
                stage.model, stage.teacher, stage.objective, train_images=len(stage.train)
            )
        self.ema = ModelEmaV3(self.student, settings.ema, use_warmup=True) if settings.ema else None
        projectors = stage.objective.parameters()
        optimizer = make_optimizer(self.student, projectors, settings, stage.head_only)
        self.schedule = make_schedule(optimizer, settings, self.steps)
        self.at = Counters()
        self.best: State = {}
        self.finished = False
        # made for fp16 alone: its state is part of the checkpoint
        self.scaler = GradScaler(runtime.device.type) if runtime.precision == "fp16" else None
        self._resume(optimizer)
        # not prepared by accelerate, which moves AdamW's counters to the device, where each step has to read them
        self.optimizer = optimizer
        self.updater = Updater(self.distiller, optimizer, self.ema, settings.clip_grad, self.scaler)
        self.pending = Pending()
        self.read_every = 1 if runtime.device.type == "cpu" else READ_EVERY
        self.wrapped: nn.Module = self.distiller
        self.head_only: bool | None = None  # as it was when `wrapped` was made
        self.saved_at = time.monotonic()

    def run(self) -> None:
        """Train the remaining epochs."""
        with stop_requests() as stop:
            while self.at.epoch < self.settings.epochs and not self.has_stalled():
                self.train_epoch(stop)
                self.end_epoch()
            self.save(finished=True)
            if self.runtime.any(stop.is_set())[0]:
                raise Interrupted

    def has_stalled(self) -> bool:
        """Whether the last epochs, as many as the patience, brought no better figures on val (early stopping)."""
        patience, rows = self.settings.patience, self.at.rows
        if patience is None or len(rows) <= patience:
            return False
        reached = [
            max(merit(val, self.stage.metric) for val in (row["val"], row["ema_val"]) if val) for row in rows
        ]
        return max(reached[-patience:]) <= max(reached[:-patience])

    def result(self) -> Trained:
        """Return the stage's rows and states."""
        states = {"last": state_of(self.student), "best": self.best}
        if self.ema:
            states["ema"] = state_of(self.ema.module)
        return Trained(self.at.rows, states)

    # --- one epoch

    def train_epoch(self, stop: threading.Event) -> None:
        """Train the remaining steps of an epoch."""
        settings, at = self.settings, self.at
        loader = self.batches()
        self.set_modes()
        started = time.monotonic()
        for batch in loader:
            self.train_step(batch)
            images = len(batch["label"]) * self.runtime.world_size
            # of several processes, none can act on a request before all know of it, which is a wait
            asked = stop.is_set() and self.runtime.world_size == 1
            if at.step % self.read_every and at.step < self.steps and not asked:
                self.progress.step(at.means, images)
                continue
            good = self.read()
            self.progress.step(at.means, images)
            now = time.monotonic()
            at.seconds, started = at.seconds + now - started, now
            due = now - self.saved_at > 60 * settings.checkpoint_minutes
            stopped, due = self.runtime.any(stop.is_set(), due)
            if good and (stopped or due):  # after a bad step the last good checkpoint is kept
                self.save()
            if stopped:
                raise Interrupted

    def batches(self) -> Iterable[dict[str, Any]]:
        """Return the remaining batches of an epoch."""
        settings, at = self.settings, self.at
        return train_loader(
            self.stage.train,
            ViewPolicy(self.stage.view),
            self.specs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=at.epoch,
            views=self.stage.views,
            steps=self.stage.steps,
            labelled_share=settings.labelled_share,
            start_step=at.step,
            workers=self.loading.workers,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            bad=self.loading.bad,
        )

    def train_step(self, batch: dict[str, Any]) -> None:
        """Train one step; `read` gets its figures from the device."""
        at, device, seed = self.at, self.runtime.device, self.settings.seed
        # dropout masks are a function of the step, and differ between processes
        torch.manual_seed(_seed(seed, self.stage.name, at.updates) + self.runtime.rank)
        views = [normalise(x, spec, device) for x, spec in zip(batch["images"], self.specs, strict=True)]
        labels = labels_in_head(batch["label"].to(device, non_blocking=True), self.head_index)
        other_labels, lam, index = labels, 1.0, batch["index"]
        if mix := draw_mix(self.stage.view, len(labels), _seed(seed, "mix", at.updates)):
            views = [mix.images(x) for x in views]
            other_labels = labels[to_device(mix.permutation, device)]
            lam = mix.lam
            index = index if lam >= 0.5 else index[mix.permutation]
        self.schedule.step_update(at.updates)
        self.updater.remember()

        def backward(part: slice) -> dict[str, Tensor]:
            """Add the gradients of a part of the batch, and return its figures."""
            own, other, teacher = labels[part], other_labels[part], self.stage.teacher
            seen = [x[part] for x in views]
            targets = (
                teacher.outputs(seen[1:], batch["index"][part], batch["view"][part]) if teacher else None
            )
            with self.runtime.autocast(), quick_depthwise(device):
                losses = self.wrapped(
                    seen[0],
                    own,
                    other_labels=other,
                    lam=lam,
                    targets=targets,
                    index=to_device(index[part], device),
                )
            self.updater.backward(losses["loss"] / self.settings.accumulate)
            return step_figures(losses, own, other, lam, targets, self.stage.objective.temperature)

        *first, last = parts_of(len(labels), self.settings.accumulate)
        with self.runtime.accelerator.no_sync(self.wrapped) if first else nullcontext():
            shown = [backward(part) for part in first]
        figures = self._over_all([*shown, backward(last)])
        at.step, at.updates = at.step + 1, at.updates + 1
        good = self.updater.apply(figures["loss"], at.updates)
        self.pending.add(at.step, figures, good, len(labels) * self.runtime.world_size)

    def _over_all(self, figures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average over the parts of a batch and over all processes; each process gets the same means."""
        parts = torch.stack([torch.stack(list(part.values())) for part in figures])
        means = self.runtime.mean(parts[0] if len(parts) == 1 else parts.mean(0))
        return dict(zip(figures[0], means.unbind(), strict=True))

    def read(self) -> bool:
        """Add the figures of the steps since the last time to the epoch's; return whether the last step was good.

        Raises:
            TutelageError: more steps than the recipe allows had a loss or a gradient that is not finite.
        """
        at, good = self.at, True
        for step, figures, good, images in self.pending.read():
            if good:
                at.add(figures, images)
                continue
            at.bad_steps += 1
            where = f"{self.stage.name}, epoch {at.epoch + 1}, step {step}"
            self.progress.say(
                f"{where}: the loss or its gradient is not finite; step skipped ({at.bad_steps} so far)"
            )
            if at.bad_steps > self.settings.max_bad_steps:
                raise TutelageError(self._diverged(where, f"{at.bad_steps} steps had a loss"))
        return good

    def _diverged(self, where: str, what: str) -> str:
        return (
            f"{where}: {what} that is not finite; the last good checkpoint is kept in {self.path.parent}; "
            "lower train.lr or set train.clip_grad or train.precision=fp32"
        )

    def set_modes(self) -> None:
        """Set what is trained in this epoch, and which BatchNorm layers only infer."""
        stage = self.stage
        head_only = stage.head_only or self.at.epoch < self.settings.head_warmup_epochs
        head = {id(p) for p in stage.model.head_parameters()} if head_only else set()
        for parameter in self.student.parameters():
            parameter.requires_grad_(not head_only or id(parameter) in head)
        if head_only is not self.head_only:  # DistributedDataParallel notes what is trained when it is made
            if self.head_only is not None:
                self.runtime.accelerator.free_memory()  # accelerate keeps a reference to the previous one
            self.head_only = head_only
            self.wrapped = self.runtime.accelerator.prepare_model(self.distiller)
        self.wrapped.train()
        if head_only or self.settings.frozen_batchnorm:  # a frozen body keeps its statistics
            for module in self.student.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    # --- the end of an epoch

    def end_epoch(self) -> None:
        """Evaluate the student on val, write the epoch's row, and save."""
        at, stage = self.at, self.stage
        at.epoch, at.step = at.epoch + 1, 0
        for module in (self.student, *([self.ema.module] if self.ema else [])):
            self.runtime.share_buffers(module)
        val = self._validate(self.student)
        row = {
            "stage": stage.name,
            "epoch": at.epoch,
            "epochs": self.settings.epochs,
            "lr": max(
                group["lr"] for group in self.optimizer.param_groups
            ),  # with layer decay that of the head
            "val": val,
            "ema_val": self._validate(self.ema.module) if self.ema else None,
            **at.row(),
        }
        if (found := list(merit(val, stage.metric))) > at.best:
            at.best, self.best = found, state_of(self.student)
        at.rows.append(row)
        if self.runtime.is_main:
            self.on_epoch(at.rows)
        self.progress.epoch(row)
        at.next_epoch()
        if at.epoch < self.settings.epochs:
            self.save()

    def _validate(self, module: nn.Module) -> dict[str, float | None]:
        try:
            return validate(self.stage, module, self.runtime, self.loading)
        except FloatingPointError:
            where = f"{self.stage.name}, epoch {self.at.epoch}, val"
            raise TutelageError(self._diverged(where, "there is an output")) from None

    # --- the checkpoint

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint; a finished stage needs no optimizer."""
        self.finished = finished
        self.saved_at = time.monotonic()
        if not self.runtime.is_main:
            return
        groups: dict[str, State] = {"model": self.student.state_dict(), "best": self.best}
        groups["terms"] = self.stage.objective.state_dict()
        if self.ema:
            groups["ema"] = self.ema.module.state_dict()
        meta: dict[str, Any] = {"finished": finished, "counters": self.at.record()}
        if not finished:
            groups["optimizer"], meta["optimizer"] = pack_optimizer(self.optimizer)
            if self.scaler:
                meta["scaler"] = self.scaler.state_dict()
        save_checkpoint(self.path, groups, meta)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        if self.path.exists():
            groups, meta = load_checkpoint(self.path)
            try:
                self.at, self.finished = Counters.read(meta["counters"]), meta["finished"]
                self.best = groups.get("best", {})
                self.student.load_state_dict(groups["model"])
                self.stage.objective.load_state_dict(groups.get("terms", {}))
                if self.ema:
                    self.ema.module.load_state_dict(groups["ema"])
                if not self.finished:
                    unpack_optimizer(optimizer, groups.get("optimizer", {}), meta["optimizer"])
                    if self.scaler:
                        self.scaler.load_state_dict(meta["scaler"])
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise TutelageError(
                    f"{self.path}: does not fit the recipe ({one_line(error)[:200]}); put recipe.yaml "
                    "back as it was, or remove the checkpoint to train this stage again"
                ) from None
        if self.runtime.is_main:
            self.on_epoch(self.at.rows)


def _seed(seed: int, name: str, step: int) -> int:
    return int(np.random.SeedSequence([seed, step, *name.encode()]).generate_state(1)[0])
