"""Batches are the same whatever the workers, the processes, the batch size or a restart."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import ViewRecipe
from tutelage.data.imagecache import cached
from tutelage.data.input_spec import InputSpec, eval_pixels, normalised
from tutelage.data.loading import BadImages, eval_loader, normalise, train_loader, worker_count
from tutelage.data.sources.base import ImageSet, open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import ViewPolicy

POLICY = ViewPolicy(ViewRecipe(rotation=10, colour=0.2, cutout=0.5))
SPECS = [InputSpec(16, 16), InputSpec(24, 24)]


def digits(count: int = 50) -> Subset:
    images = open_source("digits")
    return Subset(images, np.arange(count) * 3, images.classes or ())


def train(part: Subset, **changes):
    options = {"batch_size": 8, "seed": 1, "epoch": 0, "workers": 0, "bad": BadImages(5)}
    return list(train_loader(part, POLICY, SPECS, **(options | changes)))


def by_index(batches) -> dict[int, tuple[bytes, ...]]:
    """The bytes of every image of an epoch, by its position in the part."""
    rows = {}
    for batch in batches:
        for row, index in enumerate(batch["index"].tolist()):
            rows[index] = tuple(images[row].contiguous().numpy().tobytes() for images in batch["images"])
    return rows


def same(first, second) -> bool:
    flat = (
        [[b["index"], b["label"], *b["images"]] for b in first],
        [[b["index"], b["label"], *b["images"]] for b in second],
    )
    return len(first) == len(second) and all(
        torch.equal(x, y) for a, b in zip(*flat, strict=True) for x, y in zip(a, b, strict=True)
    )


# --- what a batch is ------------------------------------------------------------------------------------


def test_batches_are_as_the_contract_says():
    part = digits()
    batches = train(part)
    assert (
        len(batches) == len(train_loader(part, POLICY, SPECS, batch_size=8, seed=1, epoch=0, workers=0)) == 6
    )
    for batch in batches:
        assert set(batch) == {"index", "label", "view", "images"}
        assert [tuple(images.shape) for images in batch["images"]] == [(8, 3, 16, 16), (8, 3, 24, 24)]
        assert all(i.is_contiguous(memory_format=torch.channels_last) for i in batch["images"])
        assert batch["label"].tolist() == part.labels[batch["index"]].tolist()
    seen = [index for batch in batches for index in batch["index"].tolist()]
    assert len(set(seen)) == len(seen) == 48  # none twice; what does not fill a batch is left out


def test_an_unlabelled_image_has_label_minus_one(tmp_path):
    for number in range(8):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    assert train(whole(open_source(f"folder:{tmp_path}")))[0]["label"].tolist() == [-1] * 8


# --- determinism ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    assert same(train(digits(), workers=workers), train(digits()))


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of PyTorch's threads, which are those that render, too."""
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_threads_change_nothing(broken, tmp_path, threads):
    copy = cached(broken, 32, tmp_path / "cache", 1)
    assert copy.images.threadsafe
    epochs, reasons = [], []
    for count in (1, 2, 8):
        threads(count)
        bad = BadImages(3)
        epochs.append([*train(copy, bad=bad), *eval_loader(copy, SPECS, 3, 0, bad=bad)])
        reasons.append(list(bad.reasons.items()))
    assert same(epochs[0], epochs[1])
    assert same(epochs[0], epochs[2])
    assert len(reasons[0]) == 3
    assert reasons[0] == reasons[1] == reasons[2]


@pytest.mark.parametrize("safe", [True, False])
def test_a_batch_is_rendered_by_two_threads_where_its_images_can_be_read_so(threads, safe):
    class Awaiting(ImageSet):
        """Gives an image when a second one is asked for at the same time, or else after a moment."""

        threadsafe = safe

        def __init__(self) -> None:
            super().__init__("awaiting", "awaiting", [str(i) for i in range(8)])
            self.both = threading.Barrier(2)
            self.met = 0

        def image(self, index: int) -> Image.Image:
            try:
                self.both.wait(10 if self.threadsafe else 0.01)
                self.met += 1
            except threading.BrokenBarrierError:
                pass
            return Image.new("RGB", (4, 4), (index, 0, 0))

    threads(2)
    images = Awaiting()
    batches = list(eval_loader(whole(images), SPECS, 4, 0))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batches[1]["images"][0][:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert images.met == (8 if safe else 0)


def test_a_resumed_epoch_is_the_rest_of_it():
    assert same(train(digits(), start_step=4), train(digits())[4:])
    assert train(digits(), start_step=6) == []


def test_resuming_decodes_nothing_of_what_is_passed_over(monkeypatch):
    decoded = []
    original = Subset.image
    monkeypatch.setattr(Subset, "image", lambda self, i: decoded.append(i) or original(self, i))
    train(digits(), start_step=5)
    assert len(decoded) == 8


def test_processes_share_the_batches_of_one():
    one = train(digits())
    two = [train(digits(), rank=rank, world_size=2) for rank in range(2)]
    for whole_batch, *halves in zip(one, *two, strict=True):
        assert torch.equal(whole_batch["index"], torch.cat([half["index"] for half in halves]))
        for number in range(2):
            joined = torch.cat([half["images"][number] for half in halves])
            assert torch.equal(whole_batch["images"][number], joined)


def test_a_view_hangs_on_neither_batch_nor_order():
    eights, fives = by_index(train(digits())), by_index(train(digits(), batch_size=5))
    shared = eights.keys() & fives.keys()
    assert len(shared) >= 45
    assert all(eights[index] == fives[index] for index in shared)
    alone = by_index(train(Subset(digits().images, digits().indices[:10], digits().classes), batch_size=10))
    assert all(alone[index] == eights[index] for index in alone.keys() & eights.keys())


def test_epochs_differ_in_order_and_view_and_views_come_round():
    first, second, third = (train(digits(48), epoch=epoch, views=2) for epoch in range(3))
    assert [b["index"].tolist() for b in first] != [b["index"].tolist() for b in third]
    assert by_index(first) == by_index(third)
    assert by_index(first) != by_index(second)
    assert by_index(train(digits(48), epoch=2)) != by_index(first)


# --- evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once_and_in_order(world, workers):
    part = digits(50)
    seen = []
    for rank in range(world):
        for batch in eval_loader(part, SPECS, 16, workers, rank=rank, world_size=world):
            seen += batch["index"].tolist()
            for row, index in enumerate(batch["index"].tolist()):
                expected = eval_pixels(part.image(index), SPECS[1])
                assert np.array_equal(batch["images"][1][row].permute(1, 2, 0).numpy(), expected)
    assert seen == list(range(50))


# --- what cannot be decoded -----------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path) -> Subset:
    """16 images; the 3rd and 4th cannot be decoded, the 11th is not there any more."""
    for number in range(16):
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(path)
    images = open_source(f"folder:{tmp_path}")
    for index, content in ((2, b""), (3, b"no image"), (10, None)):
        path = Path(tmp_path / images.ids[index])
        path.unlink() if content is None else path.write_bytes(content)
    return whole(images)


def test_unreadable_images_are_replaced_by_the_next_counted_and_named(broken, caplog):
    bad = BadImages(3)
    batches = train(broken, bad=bad, batch_size=16)
    seen = sorted(batches[0]["index"].tolist())
    assert seen == sorted([*(set(range(16)) - {2, 3, 10}), 4, 4, 11])
    assert batches[0]["label"].tolist() == broken.labels[batches[0]["index"]].tolist()
    assert set(bad.reasons) == {broken.id(i) for i in (2, 3, 10)}
    train(broken, bad=bad, epoch=1)
    assert len([r for r in caplog.records if "cannot be decoded" in r.getMessage()]) == 3  # each once
    assert same(train(broken, bad=BadImages(3), workers=2), train(broken, bad=BadImages(3)))


def test_evaluation_leaves_unreadable_images_out(broken):
    bad = BadImages(3)
    batches = list(eval_loader(broken, SPECS, 2, 0, bad=bad))
    assert [i for b in batches for i in b["index"].tolist()] == [i for i in range(16) if i not in {2, 3, 10}]
    assert len(bad.reasons) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_the_limit_stop_the_run_with_one_line(broken, workers):
    with pytest.raises(TutelageError, match=r"data\.max_bad_images=2: 3 cannot be decoded") as caught:
        list(eval_loader(broken, SPECS, 4, workers, bad=BadImages(2)))
    assert "\n" not in str(caught.value)
    assert broken.id(2) in str(caught.value)
    with pytest.raises(TutelageError, match=r"data\.max_bad_images=0: 1 cannot"):
        list(eval_loader(broken, SPECS, 4, workers))


def test_nothing_readable_at_all_is_known_after_a_few(broken, tmp_path, monkeypatch):
    for name in broken.ids:
        (tmp_path / name).unlink(missing_ok=True)
    tried = []
    original = Subset.image
    monkeypatch.setattr(Subset, "image", lambda self, i: tried.append(i) or original(self, i))
    with pytest.raises(TutelageError, match=r"data\.max_bad_images=5: 6 cannot"):
        train(broken, batch_size=1)
    assert len(tried) == 6


class Deadly(ImageSet):
    """Kills the process that decodes it."""

    def __init__(self) -> None:
        super().__init__("deadly", "deadly", [str(i) for i in range(8)], ["a", "b"], np.arange(8) % 2)

    def image(self, index: int) -> Image.Image:
        os._exit(9)


class Failing(Deadly):
    """Fails with a line meant for the user."""

    def image(self, index: int) -> Image.Image:
        raise TutelageError("cache/x: damaged; delete it")


def test_a_worker_that_dies_is_a_clear_line():
    with pytest.raises(TutelageError, match="a loader process died") as caught:
        list(eval_loader(whole(Deadly()), SPECS, 4, 1))
    assert "data.workers=0" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_line_for_the_user_comes_through_a_worker_or_a_thread_unchanged(
    workers, safe, monkeypatch, threads
):
    threads(2)
    monkeypatch.setattr(Failing, "threadsafe", safe)
    with pytest.raises(TutelageError) as caught:
        list(eval_loader(whole(Failing()), SPECS, 4, workers))
    assert str(caught.value) == "cache/x: damaged; delete it"


def test_batches_that_cannot_be():
    with pytest.raises(TutelageError, match=r"train\.batch_size=64: there are 50"):
        train(digits(), batch_size=64)
    with pytest.raises(TutelageError, match="multiple of 3 processes"):
        train(digits(), world_size=3)


@pytest.mark.parametrize(
    ("cores", "gpu", "processes", "expected"),
    [(2, False, 1, 0), (16, False, 1, 4), (16, True, 4, 4), (64, True, 1, 8)],
)
def test_automatic_workers_leave_the_cpu_to_training(monkeypatch, cores, gpu, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_count("auto") == expected
    assert worker_count(3) == 3


# --- normalisation --------------------------------------------------------------------------------------


def test_normalise_is_the_models_own_mean_and_std():
    spec = InputSpec(16, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    batch = train(digits())[0]["images"][0]
    before = batch.clone()
    floats = normalise(batch, spec)
    expected = normalised(batch.permute(0, 2, 3, 1).numpy(), spec)
    torch.testing.assert_close(floats, torch.from_numpy(expected), atol=1e-5, rtol=0)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert normalise(batch, spec, channels_last=False).is_contiguous()
    assert torch.equal(batch, before)
