"""The loop. One stage trains one network; every stage of a run goes through here."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress, Silent
from tutelage.core.recipe import TrainRecipe
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading, dead_workers_named, normalise, train_loader
from tutelage.data.mix import draw_mix
from tutelage.data.views import ViewPolicy
from tutelage.distillation.checkpoint import (
    State,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    state_of,
    unpack_optimizer,
)
from tutelage.distillation.losses import dominant_labels
from tutelage.distillation.objective import Batch
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted, stop_requests
from tutelage.evaluation.predict import predict_logits
from tutelage.evaluation.quality import quality
from tutelage.models.depthwise import quick_depthwise

ABOUT_TARGETS = "targets."  # names of figures that are no loss terms
TIMM_SCHEDULES = {"cosine": "cosine", "linear": "poly", "constant": "constant"}


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
    targets: dict[str, float] = field(default_factory=dict)  # the same of what the targets are like
    images: int = 0
    correct: int = 0
    seconds: float = 0.0


@dead_workers_named()
def train(
    stage: Stage,
    runtime: Runtime,
    checkpoint: Path,
    *,
    loading: Loading | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> Trained:
    """Train a stage to its end, from its checkpoint where there is one.

    Args:
        stage: what is trained, and how.
        runtime: device, processes, precision.
        checkpoint: the file that is written at least once an epoch, and resumed from.
        loading: how images are loaded; None: the first that cannot be decoded stops the run.
        progress: where steps and epochs are reported to.
        on_epoch: called with the rows of all epochs so far, once when the stage begins or is resumed and then after
            each epoch, in the first process only.

    Raises:
        Interrupted: a signal asked to stop; the checkpoint is written.
        TutelageError: too many steps had a loss that is not finite.
    """
    progress = progress or Silent()
    loop = _Loop(stage, runtime, checkpoint, loading or Loading(), progress, on_epoch)
    if not loop.finished:
        progress.begin(stage.name, stage.settings.epochs * loop.steps)
        try:
            loop.run()
        finally:
            progress.end()
            runtime.accelerator.free_memory()  # it would keep every stage's optimizer
    return loop.result()


class _Loop:
    def __init__(
        self,
        stage: Stage,
        runtime: Runtime,
        path: Path,
        loading: Loading,
        progress: Progress,
        on_epoch: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self.stage, self.runtime, self.path = stage, runtime, path
        self.loading, self.progress, self.on_epoch = loading, progress, on_epoch
        self.settings, self.accelerator = stage.settings, runtime.accelerator
        self.at = Counters()
        self.best: State = {}
        self.finished = False
        self.policy = ViewPolicy(stage.view)
        self.specs = [stage.model.input_spec, *(stage.teacher.input_specs if stage.teacher else [])]
        self.steps = len(stage.train) // self.settings.batch_size
        if self.steps == 0:
            raise TutelageError(
                f"train.batch_size: {self.settings.batch_size} is more than the {len(stage.train)} training images"
            )
        self.head_index = torch.from_numpy(stage.head_index).to(self.runtime.device)
        # an earlier stage may have frozen what this one trains, and optimizers pass over what is frozen
        module = stage.model.module.to(self.runtime.device).requires_grad_(True)
        self.ema = ModelEmaV3(module, self.settings.ema, use_warmup=True) if self.settings.ema else None
        optimizer = _optimizer(module, self.settings, stage.head_only)
        self.schedule = _schedule(optimizer, self.settings, self.steps)
        self._resume(module, optimizer)
        self.module = module
        self.wrapped = module
        self.head_only: bool | None = None  # what `wrapped` was made for
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.saved_at = time.monotonic()
        self.before_step = [buffer.clone() for buffer in module.buffers()]

    def run(self) -> None:
        """All epochs that are left."""
        with stop_requests() as stop:
            while self.at.epoch < self.settings.epochs:
                self._run_epoch(stop)
            self.save(finished=True)
            if self.runtime.any(stop.is_set())[0]:
                raise Interrupted

    # --- one epoch

    def _run_epoch(self, stop: threading.Event) -> None:
        settings, at = self.settings, self.at
        loader = train_loader(
            self.stage.train,
            self.policy,
            self.specs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=at.epoch,
            views=self.stage.views,
            start_step=at.step,
            workers=self.loading.workers,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            bad=self.loading.bad,
        )
        self._set_modes()
        started = time.monotonic()
        for raw in loader:
            good = self._step(raw)
            now = time.monotonic()
            at.seconds, started = at.seconds + now - started, now
            due = now - self.saved_at > 60 * settings.checkpoint_minutes
            stopped, due = self.runtime.any(stop.is_set(), due)
            if good and (stopped or due):  # after a bad step the last good checkpoint is kept
                self.save()
            if stopped:
                raise Interrupted
        self._close_epoch()

    def _step(self, raw: dict[str, Any]) -> bool:
        """Whether it was a good one: nothing in it was infinite or NaN."""
        at = self.at
        # dropout: a pure function of the step, and other masks in other processes
        torch.manual_seed(_mix_seed(self.settings.seed, self.stage.name, at.updates) + self.runtime.rank)
        batch = self._batch(raw)
        self.schedule.step_update(at.updates)
        _copy(self.module.buffers(), self.before_step)
        with self.runtime.autocast(), quick_depthwise(self.runtime.device):
            parts = self.stage.objective(self.wrapped, batch)
        figures = self._figures(parts, batch)
        images = len(batch.labels) * self.runtime.world_size
        at.step, at.updates = at.step + 1, at.updates + 1
        good = math.isfinite(figures["loss"]) and self._update(parts["loss"])
        if good:
            self._count(figures, images)
        else:
            self._bad_step()
        self.progress.step({k: v / max(at.images, 1) for k, v in at.sums.items()}, images)
        return good

    def _update(self, loss: Tensor) -> bool:
        """A step of the optimizer, unless the gradient is not finite."""
        self.accelerator.backward(loss)
        norm = get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        if not math.isfinite(norm.item()):
            return False
        if self.settings.clip_grad:
            clip_grads_with_norm_(self.module.parameters(), self.settings.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.module, step=self.at.updates)
        return True

    def _batch(self, raw: dict[str, Any]) -> Batch:
        device = self.runtime.device
        images = [normalise(x, spec, device) for x, spec in zip(raw["images"], self.specs, strict=True)]
        labels = _to_head(raw["label"].to(device), self.head_index)
        other, lam = labels, 1.0
        seed = _mix_seed(self.settings.seed, "mix", self.at.updates)
        mix = draw_mix(self.stage.view, len(labels), seed)
        if mix:
            images = [mix.images(x) for x in images]
            other, lam = labels[mix.permutation.to(device)], mix.lam
        teacher = self.stage.teacher
        targets = teacher.targets(images[1:], raw["index"], self.at.epoch) if teacher else None
        return Batch(images[0], labels, other, lam, targets)

    def _figures(self, parts: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        """Each loss term and the share of right answers over all processes, the same in each of them."""
        right = (parts["output"].detach().argmax(1) == batch.labels).float().mean()
        values = {name: value.detach() for name, value in parts.items() if name != "output"}
        values |= _about_targets(batch, self.stage.objective.recipe.temperature)
        names, tensors = zip(*values.items(), ("right", right), strict=True)
        means = self.runtime.mean(torch.stack(tensors)).tolist()
        return dict(zip(names, means, strict=True))

    def _count(self, figures: dict[str, float], images: int) -> None:
        at = self.at
        at.correct += round(figures.pop("right") * images)
        for name, value in figures.items():
            sums = at.targets if name.startswith(ABOUT_TARGETS) else at.sums
            sums[name] = sums.get(name, 0.0) + value * images
        at.images += images

    def _bad_step(self) -> None:
        at = self.at
        at.bad_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        _copy(self.before_step, self.module.buffers())  # BatchNorm has averaged the bad batch in
        where = f"{self.stage.name}, epoch {at.epoch + 1}, step {at.step}"
        self.progress.say(
            f"{where}: the loss or its gradient is not finite; step skipped ({at.bad_steps} so far)"
        )
        if at.bad_steps > self.settings.max_bad_steps:
            raise TutelageError(self._diverged(where, f"{at.bad_steps} steps had a loss"))

    def _diverged(self, where: str, what: str) -> str:
        return (
            f"{where}: {what} that is not finite; the last good checkpoint is kept in {self.path.parent}; "
            "lower train.lr or set train.clip_grad or train.precision=fp32"
        )

    # --- the end of an epoch

    def _close_epoch(self) -> None:
        at = self.at
        at.epoch, at.step = at.epoch + 1, 0
        self._share_buffers()
        row = self._row()
        score = row["val"]["top1"]
        if score > at.best:
            at.best, self.best = score, state_of(self.module)
        at.rows.append(row)
        if self.runtime.is_main:
            self.on_epoch(at.rows)
        self.progress.epoch(row)
        at.sums, at.targets, at.images, at.correct, at.seconds = {}, {}, 0, 0, 0.0
        if at.epoch < self.settings.epochs:
            self.save()

    def _row(self) -> dict[str, Any]:
        at = self.at
        images = max(at.images, 1)
        loss = {name: total / images for name, total in sorted(at.sums.items())}
        return {
            "stage": self.stage.name,
            "epoch": at.epoch,
            "epochs": self.settings.epochs,
            "step": at.updates,
            "loss": {"total": loss.pop("loss", None), **loss},
            "train_top1": 100 * at.correct / images,
            "targets": _targets_row(at.targets, images),
            "val": self._val(self.module),
            "ema_val": self._val(self.ema.module) if self.ema else None,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images / max(at.seconds, 1e-9),
            "seconds": at.seconds,
            "bad_steps": at.bad_steps,
        }

    def _val(self, module: nn.Module) -> dict[str, float]:
        stage = self.stage
        predictions = predict_logits(module, stage.model.input_spec, stage.val, self.runtime, self.loading)
        if not predictions.logits.isfinite().all():
            raise TutelageError(
                self._diverged(f"{stage.name}, epoch {self.at.epoch}, val", "there is an output")
            )
        labels = _to_head(torch.from_numpy(stage.val.labels)[predictions.index], self.head_index.cpu())
        figures = quality(predictions.logits, labels)
        targets = stage.val_targets[predictions.index] if stage.val_targets is not None else None
        parts = stage.objective.parts(
            predictions.logits, Batch(predictions.logits, labels, labels, 1.0, targets)
        )
        loss = {name: value.item() for name, value in parts.items()}
        return {"top1": figures.top1, "nll": figures.nll, "loss": sum(loss.values()), **loss}

    # --- modes, state

    def _set_modes(self) -> None:
        stage, epoch = self.stage, self.at.epoch
        head_only = stage.head_only or epoch < self.settings.head_warmup_epochs
        head = {id(p) for p in self.module.get_classifier().parameters()}  # type: ignore[operator]  # timm
        for parameter in self.module.parameters():
            parameter.requires_grad_(not head_only or id(parameter) in head)
        if head_only is not self.head_only:  # DistributedDataParallel takes what learns when it is made
            if self.head_only is not None:
                self.accelerator.free_memory()  # it would keep the one before
            self.head_only = head_only
            self.wrapped = self.accelerator.prepare_model(self.module)
        self.wrapped.train()
        if stage.head_only or self.settings.frozen_batchnorm:
            for module in self.module.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _share_buffers(self) -> None:
        """The first process's BatchNorm statistics are every process's: figures are taken of one network."""
        for module in (self.module, *([self.ema.module] if self.ema else [])):
            self.runtime.share_buffers(module)

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint; a finished stage needs no optimizer."""
        self.finished = finished
        self.saved_at = time.monotonic()
        if not self.runtime.is_main:
            return
        groups: dict[str, State] = {"model": self.module.state_dict(), "best": self.best}
        if self.ema:
            groups["ema"] = self.ema.module.state_dict()
        meta: dict[str, Any] = {
            "finished": finished,
            "counters": {**vars(self.at), "best": _jsonable(self.at.best)},
        }
        if not finished:
            groups["optimizer"], meta["optimizer"] = pack_optimizer(_plain(self.optimizer))
        save_checkpoint(self.path, groups, meta)

    def _resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.path.exists():
            groups, meta = load_checkpoint(self.path)
            try:
                self._restore(groups, meta, module, optimizer)
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise TutelageError(
                    f"{self.path}: of another recipe ({' '.join(str(error).split())[:200]}); put recipe.yaml "
                    "back as it was, or remove the checkpoint to train this stage again"
                ) from None
        if self.runtime.is_main:
            self.on_epoch(self.at.rows)

    def _restore(
        self,
        groups: dict[str, State],
        meta: dict[str, Any],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        counters = meta["counters"]
        self.at = Counters(
            **{**counters, "best": -math.inf if counters["best"] is None else counters["best"]}
        )
        self.best, self.finished = groups.get("best", {}), meta["finished"]
        module.load_state_dict(groups["model"])
        if self.ema:
            self.ema.module.load_state_dict(groups["ema"])
        if not self.finished:
            unpack_optimizer(optimizer, groups.get("optimizer", {}), meta["optimizer"])

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


def _about_targets(batch: Batch, temperature: float) -> dict[str, Tensor]:
    """What the teacher says of a batch, as means over its images; nothing is known of targets cut to the top k."""
    if not isinstance(batch.targets, Tensor):
        return {}
    soft = torch.softmax(batch.targets.float() / temperature, 1)
    labels = dominant_labels(batch.labels, batch.other_labels, batch.lam)
    about = {
        "entropy": torch.special.entr(soft).sum(1),
        "confidence": 100 * batch.targets.float().softmax(1).amax(1),
        "right": (batch.targets.argmax(1) == labels).float(),
        "labelled": (labels >= 0).float(),
    }
    return {ABOUT_TARGETS + name: value.mean() for name, value in about.items()}


def _targets_row(sums: dict[str, float], images: int) -> dict[str, float | None] | None:
    """Of an epoch: entropy in nats at the loss's temperature, confidence and top-1 against the labels in percent."""
    if not sums:
        return None
    means = {name.removeprefix(ABOUT_TARGETS): total / images for name, total in sums.items()}
    right, labelled = means.pop("right"), means.pop("labelled")
    return {**means, "top1": 100 * right / labelled if labelled else None}


def _to_head(labels: Tensor, head_index: Tensor) -> Tensor:
    return torch.where(labels >= 0, head_index[labels.clamp_min(0)], labels)


def _mix_seed(seed: int, name: str, step: int) -> int:
    return int(np.random.SeedSequence([seed, step, *name.encode()]).generate_state(1)[0])


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for old, new in zip(source, target, strict=True):
        new.copy_(old)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None
