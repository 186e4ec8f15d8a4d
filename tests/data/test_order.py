"""Which images are in each batch: each equally often, the stated share of labels, and nothing left to chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import TutelageError
from tutelage.data.order import Order, epoch_order, labelled_in_batch, order_epoch

LABELS = np.array([0, 1, 2, 0, 1, *[-1] * 15])


def test_the_order_is_pinned():
    """Resuming a run of an earlier version rests on it."""
    assert epoch_order(10, 0, 0).tolist() == [8, 0, 3, 7, 6, 4, 1, 5, 2, 9]
    assert sorted(epoch_order(100, 3, 1).tolist()) == list(range(100))


def test_as_they_come_is_one_permutation_in_the_epochs_view() -> None:
    order = order_epoch(LABELS, 8, seed=3, epoch=2)
    assert order.positions.reshape(-1).tolist() == epoch_order(20, 3, 2)[:16].tolist()
    assert order.views.tolist() == [[2] * 8] * 2


@given(
    labelled=st.integers(1, 30),
    unlabelled=st.integers(1, 60),
    batch=st.integers(2, 24),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_batch_has_its_share_and_images_are_used_equally_often_each_time_in_a_new_view(
    labelled: int, unlabelled: int, batch: int, share: float, seed: int
) -> None:
    labels = np.array([0] * labelled + [-1] * unlabelled)
    count = max(1, round(share * batch))
    epochs = [order_epoch(labels, batch, seed, epoch, steps=5, labelled_share=share) for epoch in range(4)]
    for order in epochs:
        assert order.positions.shape == order.views.shape == (5, batch)
        assert ((labels[order.positions] >= 0).sum(1) == count).all()
    positions, views = (
        np.concatenate([getattr(o, name).ravel() for o in epochs]) for name in ("positions", "views")
    )
    for pool in (range(labelled), range(labelled, labelled + unlabelled)):
        used = np.bincount(positions, minlength=len(labels))[pool.start : pool.stop]
        assert used.max() - used.min() <= 1
    for position in np.unique(positions):
        assert views[positions == position].tolist() == list(range((positions == position).sum()))


@given(epoch=st.integers(0, 50), start=st.integers(0, 3), world=st.sampled_from([1, 2, 4]))
def test_a_batch_hangs_on_seed_epoch_and_step_only_and_each_process_has_its_share(
    epoch: int, start: int, world: int
) -> None:
    whole = order_epoch(LABELS, 8, seed=1, epoch=epoch, steps=3, labelled_share=0.5)
    again = order_epoch(LABELS, 8, seed=1, epoch=epoch, steps=3, labelled_share=0.5)
    ranks = [again.part(start, rank, world) for rank in range(world)]
    for name in ("positions", "views"):
        joined = np.concatenate([getattr(rank, name) for rank in ranks], axis=1)
        assert joined.tolist() == getattr(whole, name)[start:].tolist()
    for rank in ranks:
        assert ((LABELS[rank.positions] >= 0).sum(1) == 4 // world).all()


def test_rounds_epochs_seeds_and_kinds_have_orders_of_their_own() -> None:
    labels = np.array([0] * 12 + [-1] * 12)

    def drawn(seed: int, epoch: int) -> Order:
        return order_epoch(labels, 24, seed, epoch, steps=1, labelled_share=0.5)

    first = drawn(0, 0).positions[0]
    labelled, others = first[labels[first] >= 0], first[labels[first] < 0] - 12
    assert labelled.tolist() != others.tolist()
    assert first.tolist() != drawn(0, 1).positions[0].tolist()
    assert first.tolist() != drawn(1, 0).positions[0].tolist()


def test_fewer_images_than_a_batch_are_repeated_in_other_views() -> None:
    order = order_epoch(np.zeros(3, np.int64), 8, seed=0, epoch=1, steps=2)
    pairs = set(zip(order.positions.ravel().tolist(), order.views.ravel().tolist(), strict=True))
    assert len(pairs) == 16
    assert sorted(view for _, view in pairs) == sorted(
        [5, 5, *[v for v in range(6, 10) for _ in range(3)], 10, 10]
    )


@pytest.mark.parametrize(
    ("share", "batch", "count"), [(0.25, 64, 16), (0.001, 64, 1), (1.0, 64, 64), (0.5, 5, 2)]
)
def test_the_number_of_labelled_images_in_a_batch(share: float, batch: int, count: int) -> None:
    assert labelled_in_batch(share, batch) == count


@pytest.mark.parametrize(("labels", "words"), [([0] * 9, "have labels"), ([-1] * 9, "have no labels")])
def test_a_share_of_images_of_one_kind_is_refused(labels: list[int], words: str) -> None:
    with pytest.raises(TutelageError, match=rf"train\.labelled_share=0\.5: all 9 training images {words}"):
        order_epoch(np.array(labels), 4, 0, 0, labelled_share=0.5)
