"""Which images are in each batch of an epoch, and in which view. All of it is a pure function of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tutelage.core.errors import TutelageError

# Numbers that tell the orders of the two kinds of images apart. Not 0: numpy pads the entropy of a seed with zeros.
LABELLED, UNLABELLED = 1, 2


@dataclass(frozen=True)
class Order:
    """The batches of an epoch.

    Attributes:
        positions: (steps, B) int64, positions in the subset.
        views: (steps, B) int64, index of the view of each image.
    """

    positions: np.ndarray
    views: np.ndarray

    def part(self, start_step: int, rank: int, world_size: int) -> Order:
        """Return the slice of each batch that one of several processes gets, from a step on."""
        return Order(
            *(
                np.array_split(batches[start_step:], world_size, axis=1)[rank]
                for batches in (self.positions, self.views)
            )
        )


def order_epoch(
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    steps: int | None = None,
    labelled_share: float | None = None,
) -> Order:
    """Order the images of an epoch.

    Without `steps` and `labelled_share` an epoch has each image once, in view number `epoch`; those that do not fill a
    batch are left out. With one of them, images come from an order without an end: a permutation of all of them, then
    another one, and so on over all epochs. So every image is used equally often, the k-th time in its k-th view,
    although it may be needed several times in an epoch or even in a batch.

    Args:
        labels: (n,) of the subset; -1 where an image has none.
        batch_size: images of a batch, B.
        seed: of the run.
        epoch: counted from 0.
        steps: batches of an epoch; None: n // B.
        labelled_share: share of each batch that is labelled; the labelled and the unlabelled images have an order each.
            The labelled ones are spread over the batch, so that each of several processes gets its share. None: images
            of both kinds have one order.

    Raises:
        TutelageError: `labelled_share` needs images of both kinds, or there is no image.
    """
    if steps is None and labelled_share is None:
        positions = epoch_order(len(labels), seed, epoch)[: len(labels) // batch_size * batch_size]
        positions = positions.reshape(-1, batch_size)
        return Order(positions, np.full_like(positions, epoch))
    if steps is None:
        steps = len(labels) // batch_size
    if labelled_share is None:
        return Order(*_endless(np.arange(len(labels)), seed, LABELLED, epoch, (steps, batch_size)))
    pools = {LABELLED: np.flatnonzero(labels >= 0), UNLABELLED: np.flatnonzero(labels < 0)}
    count = labelled_in_batch(labelled_share, batch_size)
    counts = {LABELLED: count, UNLABELLED: batch_size - count}
    check_share(labelled_share, *(len(pool) for pool in pools.values()))
    steps_up = np.arange(batch_size + 1) * count // batch_size
    slots = {LABELLED: np.diff(steps_up) == 1, UNLABELLED: np.diff(steps_up) == 0}
    positions, views = (np.empty((steps, batch_size), np.int64) for _ in range(2))
    for kind, pool in pools.items():
        drawn = _endless(pool, seed, kind, epoch, (steps, counts[kind]))
        positions[:, slots[kind]], views[:, slots[kind]] = drawn
    return Order(positions, views)


def check_share(share: float, labelled: int, unlabelled: int) -> None:
    """Refuse a share of labelled images where the training images are not of both kinds.

    Raises:
        TutelageError: there are no labelled or no unlabelled images.
    """
    if not labelled or not unlabelled:
        kind = "labels" if labelled else "no labels"
        raise TutelageError(
            f"train.labelled_share={share:g}: all {labelled + unlabelled} training images have {kind}, so that no "
            "share can be kept; set data.labels_per_class or data.unlabelled, or leave train.labelled_share out"
        )


def labelled_in_batch(share: float, batch_size: int) -> int:
    """Return how many images of a batch are labelled: the nearest number to the share, and at least one."""
    return max(1, round(share * batch_size))


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the images in an epoch: an int64 permutation, a pure function of the arguments."""
    return _permutation(size, [seed, epoch])


def _endless(
    pool: np.ndarray, seed: int, kind: int, epoch: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Take an epoch's part of the endless order of some positions: these, and how often each was used before."""
    count = shape[0] * shape[1]
    places = np.arange(epoch * count, (epoch + 1) * count)
    rounds = places // len(pool)
    positions = np.empty(count, np.int64)
    for number in np.unique(rounds).tolist():
        here = rounds == number
        positions[here] = pool[_permutation(len(pool), [seed, number, kind])][places[here] % len(pool)]
    return positions.reshape(shape), rounds.reshape(shape)


def _permutation(size: int, entropy: list[int]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).permutation(size)
