"""A model's logits on a part of the data, each image counted once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.out_of_memory import halve_until_it_fits, or_refuse
from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.kept import Batch
from tutelage.data.loading import Batches, Loading, eval_loader, normalise
from tutelage.data.splits import Subset
from tutelage.data.workers import dead_workers_named

BATCH = 128


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model for a subset.

    Attributes:
        logits: (N, C) float32 on the CPU.
        index: (N,) int64, positions in the subset; images that cannot be decoded are missing.
    """

    logits: Tensor
    index: Tensor


def predict_logits(
    module: nn.Module,
    spec: InputSpec,
    subset: Subset,
    runtime: Runtime,
    loading: Loading | None = None,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Predictions:
    """Compute the logits of a subset's images without augmentation, in the subset's order.

    Args:
        module: (B, 3, H, W) to (B, C); left in the mode it was in.
        spec: input of the module.
        subset: the images.
        runtime: device and processes.
        loading: workers, and how many images that cannot be decoded are left out; None: the first raises.
        on_batch: called with the number of images of each batch that is done.

    Raises:
        TutelageError: no image can be decoded, or more than allowed cannot, or there is too little memory for one.
    """
    (found,) = predict_together([(module, spec)], subset, runtime, loading, on_batch=on_batch)
    return found


@torch.no_grad()
@dead_workers_named()
def predict_together(
    networks: Sequence[tuple[nn.Module, InputSpec]],
    subset: Subset,
    runtime: Runtime,
    loading: Loading | None = None,
    *,
    batch_size: int = BATCH,
    on_batch: Callable[[int], object] = lambda images: None,
) -> list[Predictions]:
    """Compute what several networks give for a subset's images, each of which is decoded once for all of them.

    A batch for which memory does not suffice is computed in parts.

    Args:
        networks: each with its input; otherwise as in `predict_logits`.
        subset: the images.
        runtime: device and processes.
        loading: as in `predict_logits`.
        batch_size: images.
        on_batch: called with the number of images of each batch that is done.

    Raises:
        TutelageError: as in `predict_logits`.
    """
    modes = [module.training for module, _ in networks]
    specs = list(dict.fromkeys(spec for _, spec in networks))  # models with one input share one rendering
    sizes = [batch_size] * len(networks)  # that fit into memory
    logits: list[list[Tensor]] = [[] for _ in networks]
    index: list[Tensor] = []
    loading = loading or Loading()
    for module, _ in networks:
        module.eval()
    for batch in _pass(subset, specs, batch_size, runtime, loading):
        for place, (module, spec) in enumerate(networks):
            images = normalise(batch["images"][specs.index(spec)], spec, runtime.device)
            sizes[place], found = _outputs(module, images, sizes[place])
            logits[place].append(found)
        index.append(batch["index"])
        on_batch(len(batch["index"]))
    for (module, _), training in zip(networks, modes, strict=True):
        module.train(training)
    return [_gather(found, index, runtime) for found in logits]


def _pass(
    subset: Subset, specs: Sequence[InputSpec], batch_size: int, runtime: Runtime, loading: Loading
) -> Iterable[Batch]:
    """Return this process's batches, from memory where `loading` keeps them; of several inputs none is kept."""

    def read(after: int) -> Batches:
        return eval_loader(
            subset,
            specs,
            batch_size,
            loading.workers,
            rank=runtime.rank,
            world_size=runtime.world_size,
            bad=loading.bad,
            after=after,
        )

    if loading.kept is None or len(specs) > 1:
        return read(-1)
    return loading.kept.batches(subset, specs[0], batch_size, read)


def _outputs(module: nn.Module, images: Tensor, most: int) -> tuple[int, Tensor]:
    """Compute a network's float32 outputs for a batch, in parts of at most `most` images; return that number, too.

    Where memory runs out, the parts are halved.

    Raises:
        TutelageError: there is too little memory for one image.
    """

    def in_parts(size: int) -> Tensor:
        return torch.cat([module(part).float() for part in images.split(size)])

    height, width = images.shape[-2:]
    return or_refuse(
        lambda: halve_until_it_fits(in_parts, most),
        lambda reason: TutelageError(
            f"evaluation on {images.device}: out of memory with one image of {width} x {height} px ({reason}); use a "
            "smaller model or resolution (teacher.resolution, student.resolution), or free memory"
        ),
    )


def in_common(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Keep only the images that are in all predictions: an image can become unreadable in between."""
    shared = reduce(np.intersect1d, [one.index.numpy() for one in predictions])
    return [_restricted(one, shared) for one in predictions]


def _restricted(one: Predictions, index: np.ndarray) -> Predictions:
    kept = torch.from_numpy(np.isin(one.index.numpy(), index))
    return Predictions(one.logits[kept], one.index[kept])


def _gather(own: Sequence[Tensor], positions: Sequence[Tensor], runtime: Runtime) -> Predictions:
    """Combine the outputs of all processes in the subset's order, on the CPU."""
    if not own:
        raise TutelageError("none of the images can be decoded; check the files of this data source")
    logits, index = torch.cat(list(own)), torch.cat(list(positions)).to(runtime.device)
    if runtime.world_size > 1:
        accelerator = runtime.accelerator
        logits = accelerator.gather(accelerator.pad_across_processes(logits))
        index = accelerator.gather(accelerator.pad_across_processes(index, pad_index=-1))
        logits, index = logits[index >= 0], index[index >= 0]
    order = index.argsort()
    return Predictions(logits[order].cpu(), index[order].cpu())
