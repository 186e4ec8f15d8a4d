"""A model's logits on a part of the data, each image counted once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tutelage.data.loading import BadImages, Workers, dead_workers_named, eval_loader, normalise
from tutelage.data.splits import Part
from tutelage.errors import TutelageError
from tutelage.inputs import InputSpec

BATCH = 128


@dataclass(frozen=True)
class Predictions:
    """What a model said of a part.

    Attributes:
        logits: (N, C) float32 on the CPU.
        index: (N,) positions in the part; images that cannot be decoded are missing.
    """

    logits: Tensor
    index: Tensor


@torch.no_grad()
@dead_workers_named()
def predict_logits(
    module: nn.Module,
    spec: InputSpec,
    part: Part,
    accelerator: Accelerator,
    *,
    workers: Workers = "auto",
    bad: BadImages | None = None,
) -> Predictions:
    """The logits of a part's un-augmented images, in the part's order.

    Args:
        module: (B, 3, H, W) to (B, C); left in the mode it was in.
        spec: how it wants its pictures.
        part: the images.
        accelerator: device, precision, processes.
        workers: of the loader.
        bad: counts images that cannot be decoded, which are left out; None: the first raises.
    """
    training = module.training
    module.eval()
    mine: list[Tensor] = []
    places: list[Tensor] = []
    rank, world = accelerator.process_index, accelerator.num_processes
    for batch in eval_loader(part, [spec], BATCH, workers, rank=rank, world_size=world, bad=bad):
        images = normalise(batch["images"][0], spec, accelerator.device)
        mine.append(module(images).float())
        places.append(batch["index"])
    module.train(training)
    return _gather(mine, places, accelerator)


def in_common(said: Sequence[Predictions]) -> list[Predictions]:
    """Restricted to the images that could be decoded every time: one may turn unreadable in between."""
    shared = reduce(np.intersect1d, [one.index.numpy() for one in said])
    return [_restricted(one, shared) for one in said]


def _restricted(one: Predictions, index: np.ndarray) -> Predictions:
    kept = torch.from_numpy(np.isin(one.index.numpy(), index))
    return Predictions(one.logits[kept], one.index[kept])


def _gather(mine: Sequence[Tensor], places: Sequence[Tensor], accelerator: Accelerator) -> Predictions:
    if not mine:
        raise TutelageError("none of the images can be decoded; look at the files of this data source")
    logits, index = torch.cat(list(mine)), torch.cat(list(places)).to(accelerator.device)
    if accelerator.num_processes > 1:
        logits = accelerator.gather(accelerator.pad_across_processes(logits))
        index = accelerator.gather(accelerator.pad_across_processes(index, pad_index=-1))
        logits, index = logits[index >= 0], index[index >= 0]
    order = index.argsort()
    return Predictions(logits[order].cpu(), index[order].cpu())
