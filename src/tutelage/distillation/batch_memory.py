"""How many images of a batch fit into memory when a stage is trained, and what is said where they do not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.utils import ModelEmaV3

from tutelage.core.errors import TutelageError
from tutelage.core.out_of_memory import batch_too_large, largest_that_fits, or_refuse
from tutelage.core.runtime import Runtime, alone
from tutelage.data.loading import Loading, normalise, train_loader
from tutelage.data.views import ViewPolicy
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.optim import LR, make_optimizer
from tutelage.distillation.stage import Stage
from tutelage.distillation.validation import labels_in_head
from tutelage.models.depthwise import quick_depthwise

log = logging.getLogger(__name__)
T = TypeVar("T")
LEAST = 2  # images of each process, since BatchNorm needs more than one


def largest_batch(stage: Stage, runtime: Runtime, loading: Loading, start: int) -> int:
    """Find out with how many images of a batch this process can train a stage.

    Two steps are made with images of the stage: the moments of the optimizer are there from the first one on. The
    process does this alone, so that others may find another number, or not be there.

    Args:
        stage: its model and its objective are changed in place.
        runtime: device and precision.
        loading: counts images that cannot be decoded.
        start: images to begin with; they are halved where memory runs out.

    Returns:
        The images of this process; 0 where not even `LEAST` fit.
    """
    if start < LEAST:
        return 0
    specs = [stage.model.input_spec, *(stage.teacher.input_specs if stage.teacher else [])]
    loader = train_loader(
        stage.train,
        ViewPolicy(stage.view),
        specs,
        batch_size=start,
        seed=stage.settings.seed,
        epoch=0,
        views=stage.views,
        steps=1,
        workers=0,
        bad=loading.bad,
    )
    with alone(), torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they are
        batch = next(iter(loader))
        return largest_that_fits(lambda count: _two_steps(stage, runtime, batch, count), start, LEAST)


def _two_steps(stage: Stage, runtime: Runtime, batch: dict[str, Any], count: int) -> None:
    """Train as the loop does, with the first images of a batch, but without other processes."""
    settings, device, teacher = stage.settings, runtime.device, stage.teacher
    student = stage.model.module.to(device).train()
    student.zero_grad(set_to_none=True)
    head = {id(parameter) for parameter in stage.model.head_parameters()} if stage.head_only else None
    for parameter in student.parameters():
        parameter.requires_grad_(head is None or id(parameter) in head)
    distiller = Distiller(stage.model, teacher, stage.objective, train_images=len(stage.train))
    ema = ModelEmaV3(student, settings.ema) if settings.ema else None
    known = settings if settings.lr > 0 else settings.model_copy(update={"lr": LR})  # auto is not chosen yet
    optimizer = make_optimizer(student, stage.objective.parameters(), known, stage.head_only)
    specs = [stage.model.input_spec, *(teacher.input_specs if teacher else [])]
    index, head_index = batch["index"][:count], torch.from_numpy(stage.head_index).to(device)
    for _ in range(2):
        views = [normalise(x[:count], spec, device) for x, spec in zip(batch["images"], specs, strict=True)]
        labels = labels_in_head(batch["label"][:count].to(device), head_index)
        targets = teacher.outputs(views[1:], index, batch["view"][:count]) if teacher else None
        with runtime.autocast(), quick_depthwise(device):
            losses = distiller(views[0], labels, targets=targets, index=index.to(device))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:
            ema.update(student)


def within_memory(stage: Stage, runtime: Runtime, loading: Loading, call: Callable[[], T]) -> T:
    """Call what trains a stage.

    Raises:
        TutelageError: memory ran out; the line names the batch that would fit, where that can be found out.
    """

    def refuse(reason: str) -> TutelageError:
        tried, processes = stage.settings.batch_size, runtime.world_size
        fitting: int | None
        try:
            fitting = processes * largest_batch(stage, runtime, loading, tried // processes // 2)
        except Exception:  # the run ends in any case, and its own error says more than one of this search
            log.debug("cannot find out which batch fits", exc_info=True)
            fitting = None
        return batch_too_large(f"{stage.name} on {runtime.device}", tried, fitting, reason)

    return or_refuse(call, refuse)
