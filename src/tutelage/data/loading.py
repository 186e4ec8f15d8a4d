"""Batches of views. They do not depend on the number of workers or processes, or on restarts."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import gpu_in_use, has_gpu
from tutelage.data.decode import UnreadableImage
from tutelage.data.device_views import render
from tutelage.data.input_spec import InputSpec
from tutelage.data.kept import Batch, KeptPixels
from tutelage.data.order import order_epoch
from tutelage.data.rendering import Crops, views_of
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy
from tutelage.data.workers import as_it_is, dead_workers_named, deaf_to_interrupts

log = logging.getLogger(__name__)
Workers = int | Literal["auto"]
Wanted = tuple[np.ndarray, np.ndarray]  # positions and views of a batch
Unread = list[tuple[str, str]]  # ids of images that cannot be decoded, and why
THREADS = 2  # that render a batch where no loader process does; more have not been measured


class BadImages:
    """Counts images that cannot be decoded, over all loaders of a run, and stops the run at a limit.

    Attributes:
        limit: number of different images that may be skipped.
        reasons: why each could not be decoded, by its id.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def add(self, image_id: str, reason: str) -> None:
        """Count an image once.

        Raises:
            TutelageError: there are more than `limit` of them.
        """
        if image_id in self.reasons:
            return
        self.reasons[image_id] = reason
        log.warning("%s: skipped, cannot be decoded (%s)", image_id, reason)
        if len(self.reasons) > self.limit:
            first = next(iter(self.reasons))
            raise TutelageError(
                f"data.max_bad_images={self.limit}: {len(self.reasons)} cannot be decoded, the first of them "
                f"{first} ({self.reasons[first]}); replace or remove them, or raise the limit"
            )


@dataclass(frozen=True)
class Loading:
    """How a run loads its images.

    Attributes:
        workers: loader processes.
        bad: counts images that cannot be decoded; by default the first stops the run.
        kept: keeps the pixels of a subset that is evaluated many times; None: each pass decodes its images.
    """

    workers: Workers = "auto"
    bad: BadImages = field(default_factory=lambda: BadImages(0))
    kept: KeptPixels | None = None


class Batches:
    """An iterable of batches: a torch DataLoader, with unreadable images counted and dead workers named.

    Each batch is a dict: ``index`` int64 (B,), positions in the subset; ``label`` int64 (B,), -1 where there
    is none; ``view`` int64 (B,), index of the view (0 in an evaluation); ``images``, for each `InputSpec` a uint8
    (B, 3, H, W) tensor, channels last in memory.
    """

    def __init__(
        self,
        loader: DataLoader[Batch],
        bad: BadImages,
        specs: Sequence[InputSpec],
        device: torch.device | None,
    ) -> None:
        """Read batches.

        Args:
            loader: of `_Rendered`.
            bad: counts unreadable images.
            specs: inputs of all models.
            device: renders views that the loader hands on; None: it hands none on.
        """
        self._loader = loader
        self._bad = bad
        self._specs = specs
        self._device = device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        with dead_workers_named():
            for batch in self._loader:
                if "error" in batch:
                    raise TutelageError(batch["error"])
                for image_id, reason in batch.pop("bad"):
                    self._bad.add(image_id, reason)
                if len(batch["index"]):
                    if self._device is not None and "handed" in batch:
                        batch["images"] = render(batch.pop("handed"), self._specs, self._device)
                    yield batch


def train_loader(
    subset: Subset,
    policy: ViewPolicy,
    specs: Sequence[InputSpec],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    views: int | None = None,
    steps: int | None = None,
    labelled_share: float | None = None,
    workers: Workers = "auto",
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    bad: BadImages | None = None,
) -> Batches:
    """The batches of one epoch, with each view rendered for every spec.

    The order is a pure function of (seed, epoch), and a view is one of (seed, image, view index). An image that
    cannot be decoded is replaced by the next image of the subset that can.

    Args:
        subset: the images.
        policy: draws the views.
        specs: one for each model that gets the images.
        batch_size: images over all processes; images that do not fill a batch are left out of the epoch.
        seed: of the run.
        epoch: counted from 0.
        views: number of different views of an image, which then come round again. None: a new view each time.
        steps: number of batches of the epoch, for which images are used several times or not at all; see `order_epoch`.
            None: as many as the images fill, each image once.
        labelled_share: share of each batch that is labelled; None: images are taken as they come.
        workers: number of loader processes.
        start_step: number of batches to skip, without decoding them, when an epoch is resumed.
        rank: of this process, which gets its slice of every batch.
        world_size: number of processes.
        bad: counts unreadable images; None: the first stops the run.

    Raises:
        TutelageError: the subset does not fill one batch (unless `steps` is given), or the batch size is no multiple of
            the processes, or there are no images of both kinds for `labelled_share`.
    """
    if steps is None and len(subset) < batch_size:
        raise TutelageError(
            f"train.batch_size={batch_size}: there are {len(subset)} training images in {subset.images.name}; "
            "use a smaller batch size"
        )
    if batch_size % world_size:
        raise TutelageError(f"train.batch_size={batch_size}: must be a multiple of {world_size} processes")
    order = order_epoch(subset.labels, batch_size, seed, epoch, steps=steps, labelled_share=labelled_share)
    own = order.part(start_step, rank, world_size)
    shown = own.views if views is None else own.views % views
    images = views_of(subset, specs, policy, seed)
    bad = bad or BadImages(0)
    return _batches(images, list(zip(own.positions, shown, strict=True)), workers, bad, tries=bad.limit + 1)


def eval_loader(
    subset: Subset,
    specs: Sequence[InputSpec],
    batch_size: int,
    workers: Workers = "auto",
    *,
    rank: int = 0,
    world_size: int = 1,
    bad: BadImages | None = None,
    after: int = -1,
) -> Batches:
    """Every image once and in order, as timm's evaluation transform shows it; unreadable images are left out.

    With several processes, each gets a contiguous slice of the subset; slices differ by at most one image. Only batches
    that begin behind the position `after` are read.
    """
    own = np.array_split(np.arange(len(subset)), world_size)[rank]
    batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
    wanted = [_in_view(batch, 0) for batch in batches if batch[0] > after]
    return _batches(Crops(subset, specs), wanted, workers, bad or BadImages(0))


def view_loader(
    subset: Subset,
    policy: ViewPolicy,
    specs: Sequence[InputSpec],
    batches: Iterable[np.ndarray],
    *,
    seed: int,
    view: int,
    workers: Workers = "auto",
    bad: BadImages | None = None,
) -> Batches:
    """One view of the images at given positions, as `train_loader` renders it; unreadable images are left out.

    Args:
        subset: the images.
        policy: draws the views.
        specs: one for each model that gets the images.
        batches: positions, one array for each batch; read from the iterable when they are needed.
        seed: of the run.
        view: index of the view.
        workers: loader processes.
        bad: counts unreadable images; None: the first stops the run.
    """
    images = views_of(subset, specs, policy, seed)
    return _batches(images, (_in_view(batch, view) for batch in batches), workers, bad or BadImages(0))


def normalise(
    images: torch.Tensor, spec: InputSpec, device: torch.device | str = "cpu", channels_last: bool = True
) -> torch.Tensor:
    """Move uint8 images (B, 3, H, W) to a device as float32, normalised with the model's mean and std."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = images.to(device, non_blocking=True).to(torch.float32, memory_format=layout)
    size = (images.shape[2], images.shape[3]) if channels_last else (1, 1)
    mean, std = (_constant(tuple(values), str(device), size) for values in (spec.mean, spec.std))
    return pixels.sub_(mean).div_(std)


@lru_cache
def _constant(values: tuple[float, ...], device: str, size: tuple[int, int]) -> torch.Tensor:
    """Return three values of 0 to 1 as (3, height, width) of 0 to 255, which are sent to a device once.

    In channels-last memory, three values for each pixel would make the CPU's innermost loop one of three steps; as a
    whole image of them the same arithmetic takes a fifth (96 pixels) or two fifths (224) of the time.
    """
    with torch.inference_mode(False):  # the first batch may be one of an evaluation
        one = torch.tensor(values, device=device).mul_(255).view(1, -1, 1, 1)
        return one.expand(-1, -1, *size).contiguous(memory_format=torch.channels_last)


def worker_count(workers: Workers) -> int:
    """Number of loader processes. ``auto``: one per core beside a GPU, one per four cores on a CPU; at most 8."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: processes on this machine
    return min(8, mine if has_gpu() else mine // 4)


class _Rendered(Dataset[Batch]):
    """Makes a batch in one step."""

    def __init__(self, crops: Crops, tries: int) -> None:
        self._crops = crops
        self._part = crops.subset
        self._tries = tries

    def __getitem__(self, wanted: Wanted) -> Batch:
        rows = list(zip(*(array.tolist() for array in wanted), strict=True))
        frames = self._crops.frames(len(rows))
        index: list[int] = []
        shown: list[int] = []
        bad: Unread = []
        try:
            for (_, view), (found, unread) in zip(rows, self._rendered(rows), strict=True):
                bad += unread
                if found is not None:
                    frames.add(len(index), found[1])
                    index.append(found[0])
                    shown.append(view)
        except TutelageError as error:  # raised in a worker, it would lose its class and gain a traceback
            return {"error": str(error)}
        return {
            "index": torch.tensor(index, dtype=torch.int64),
            "view": torch.tensor(shown, dtype=torch.int64),
            "label": torch.from_numpy(self._part.labels[index]),
            "bad": bad,
            **frames.batch(len(index)),
        }

    def _rendered(self, rows: Sequence[tuple[int, int]]) -> Iterable[tuple[tuple[int, Any] | None, Unread]]:
        """What `_readable` gives for each position and view, in their order.

        Where there are no loader processes, no network computes meanwhile, and the cores of PyTorch's threads are free
        to render: Pillow resizes outside Python's lock.
        """
        several = self._part.images.threadsafe and get_worker_info() is None
        threads = min(THREADS, torch.get_num_threads()) if several else 1
        if threads == 1:
            return (self._readable(*row) for row in rows)
        parts = [rows[len(rows) * n // threads : len(rows) * (n + 1) // threads] for n in range(threads)]
        return chain.from_iterable(_pool().map(lambda part: [self._readable(*row) for row in part], parts))

    def _readable(self, position: int, view: int) -> tuple[tuple[int, Any] | None, Unread]:
        """The image at a position, or else the first of the next `tries` - 1 images that can be decoded."""
        bad: Unread = []
        for step in range(min(self._tries, len(self._part))):
            candidate = (position + step) % len(self._part)
            try:
                return (candidate, self._crops.render(candidate, view)), bad
            except UnreadableImage as error:
                bad.append((error.image_id, error.reason))
        return None, bad


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "rendering")


def _in_view(positions: np.ndarray, view: int) -> Wanted:
    return positions, np.full(len(positions), view)


def _batches(
    crops: Crops, batches: Iterable[Wanted], workers: Workers, bad: BadImages, tries: int = 1
) -> Batches:
    count = worker_count(workers)
    if isinstance(batches, list):
        count = min(count, math.ceil(len(batches) / 2))
    loader = DataLoader(
        _Rendered(crops, tries),
        batch_size=None,
        sampler=batches,
        num_workers=count,
        collate_fn=as_it_is,
        pin_memory=has_gpu(),
        worker_init_fn=deaf_to_interrupts if count else None,
    )
    return Batches(loader, bad, crops.specs, gpu_in_use())
