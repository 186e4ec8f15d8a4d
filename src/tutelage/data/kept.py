"""A subset's evaluation images in memory: rendered in the first pass over them, and not again in those that follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tutelage.core.memory import machine_memory
from tutelage.data.input_spec import InputSpec
from tutelage.data.subset import Subset

LIMIT = 2 * 10**9  # bytes; 13,000 images of 224 x 224 px
OF_MACHINE = 1 / 8  # of its memory, where that is less
Batch = dict[str, Any]
Read = Callable[[int], Iterable[Batch]]


@dataclass(frozen=True)
class _Kept:
    """The first batches of a pass, and whether these are all."""

    batches: list[Batch]
    whole: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(_size, self.batches))


class KeptPixels:
    """The pixels of one subset, for each input that passes over it ask for, below a limit for all of them together.

    Of a subset that does not fit, the first batches are kept, and the others are read again in each pass. The pixels of
    the input that was asked for longest ago make room for those of another one.
    """

    def __init__(self, subset: Subset, limit: float | None = None) -> None:
        """Keep nothing yet.

        Args:
            subset: whose pixels are kept. Passes over other subsets are not changed.
            limit: bytes; None: `default_limit`.
        """
        self._subset = subset
        self._limit = default_limit() if limit is None else limit
        self._kept: dict[
            tuple[object, ...], _Kept
        ] = {}  # by input, the one that was asked for longest ago first

    def batches(self, subset: Subset, spec: InputSpec, batch_size: int, read: Read) -> Iterator[Batch]:
        """Return the batches of a pass, from memory as far as they are there.

        Args:
            subset: over which the pass is.
            spec: input of the network.
            batch_size: images.
            read: returns the batches, of uint8 images, that begin behind a position in the subset.
        """
        if subset is not self._subset:
            yield from read(-1)
            return
        key = (*_look(spec), batch_size)
        kept = self._kept.pop(key, None)
        if kept is None:
            yield from self._first_pass(key, read)
            return
        self._kept[key] = kept  # as the last one
        yield from kept.batches
        if not kept.whole:
            yield from read(int(kept.batches[-1]["index"][-1]) if kept.batches else -1)

    def _first_pass(self, key: tuple[object, ...], read: Read) -> Iterator[Batch]:
        found: list[Batch] = []
        size, whole = 0, True
        for batch in read(-1):
            size += _size(batch)
            whole = whole and self._has_room(size)
            if whole:  # what is kept has no gaps
                found.append({name: _copied(value) for name, value in batch.items()})
            yield batch
        self._kept[key] = _Kept(
            found, whole
        )  # not before the end: a pass that is stopped has not seen all images

    def _has_room(self, wanted: int) -> bool:
        """Whether so many bytes can be kept; older ones are dropped for them."""
        while sum(kept.size for kept in self._kept.values()) + wanted > self._limit:
            if not self._kept:
                return False
            del self._kept[next(iter(self._kept))]
        return True


def default_limit() -> float:
    """Return how many bytes one process may keep: `LIMIT`, or less on a small machine, shared by its processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: on this machine
    return min(LIMIT, OF_MACHINE * machine_memory()) / processes


def _look(spec: InputSpec) -> tuple[object, ...]:
    """What the pixels of an input depend on; its mean is the colour of a border."""
    border = spec.mean if spec.crop_mode == "border" else None
    return type(spec), spec.height, spec.width, spec.crop_pct, spec.interpolation, spec.crop_mode, border


def _size(batch: Batch) -> int:
    return sum(images.nbytes for images in batch["images"])


def _copied(value: Any) -> Any:
    """Copy tensors out of the memory that loader processes share, of which there is little."""
    return value.clone() if isinstance(value, Tensor) else [images.clone() for images in value]
