"""Evaluation images in memory: what a second pass gets is what the first one got, and no image is read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import InputSpec
from tutelage.data.kept import LIMIT, Batch, KeptPixels, default_limit
from tutelage.data.loading import BadImages, eval_loader
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import Subset, whole

SPEC = InputSpec(height=4, width=4)
OTHER = InputSpec(height=6, width=6)
BATCH = 2
BYTES = 3 * 4 * 4  # of an image


class Counted(ImageSet):
    """Pictures of one colour, some of which cannot be decoded; notes which were asked for."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()) -> None:
        super().__init__("counted", "here", [str(i) for i in range(count)], list("ab"), np.arange(count) % 2)
        self.unreadable = unreadable
        self.read: list[int] = []

    def image(self, index: int) -> Image.Image:
        self.read.append(index)
        if index in self.unreadable:
            raise UnreadableImage(self.ids[index], "cut off")
        return Image.new("RGB", (8, 8), (10 * index, 0, 255))

    def taken(self) -> list[int]:
        """What was read since the last call."""
        read, self.read = self.read, []
        return read


def passed(kept: KeptPixels, subset: Subset, spec: InputSpec = SPEC) -> list[Batch]:
    bad = BadImages(9)
    return list(
        kept.batches(
            subset, spec, BATCH, lambda after: eval_loader(subset, [spec], BATCH, 0, bad=bad, after=after)
        )
    )


def pictures(count: int, unreadable: tuple[int, ...] = ()) -> tuple[Counted, Subset]:
    images = Counted(count, unreadable)
    return images, whole(images)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a["index"].equal(b["index"])
        and a["label"].equal(b["label"])
        and all(
            x.equal(y) and x.stride() == y.stride() for x, y in zip(a["images"], b["images"], strict=True)
        )
        for a, b in zip(one, other, strict=True)
    )


# a batch of which nothing can be decoded is no batch: in the middle, at the end, at the beginning
@pytest.mark.parametrize("unreadable", [(), (1,), (2, 3), (4,), (0, 1)])
@pytest.mark.parametrize("images_kept", [0, 2, 4, 5])
def test_each_pass_has_the_same_batches_and_reads_only_what_is_not_kept(
    unreadable: tuple[int, ...], images_kept: int
) -> None:
    images, subset = pictures(5, unreadable)
    plain = list(eval_loader(subset, [SPEC], BATCH, 0, bad=BadImages(9)))
    images.taken()
    kept = KeptPixels(subset, images_kept * BYTES)
    for number in range(3):
        assert same(passed(kept, subset), plain)
        read = images.taken()
        if number == 0:
            assert read == [0, 1, 2, 3, 4]
        elif not unreadable:
            assert read == [0, 1, 2, 3, 4][images_kept:]
        elif images_kept == 5:
            assert read == []


def test_models_that_differ_in_mean_and_std_share_pixels_and_others_do_not() -> None:
    images, subset = pictures(3)
    kept = KeptPixels(subset, LIMIT)
    passed(kept, subset)
    images.taken()
    passed(kept, subset, replace(SPEC, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert images.taken() == []
    bordered = replace(SPEC, crop_mode="border")
    for spec in (
        OTHER,
        replace(SPEC, crop_pct=0.5),
        replace(SPEC, interpolation="nearest"),
        bordered,
        replace(bordered, mean=(1.0, 1.0, 1.0)),  # the colour of the border
    ):
        passed(kept, subset, spec)
        assert images.taken() == [0, 1, 2]
        passed(kept, subset, spec)
        assert images.taken() == []


def test_only_its_own_subset_is_kept() -> None:
    _, subset = pictures(3)
    images, test = pictures(3)
    kept = KeptPixels(subset, LIMIT)
    for _ in range(2):
        assert same(passed(kept, test), list(eval_loader(test, [SPEC], BATCH, 0)))
        assert images.taken() == [0, 1, 2, 0, 1, 2]


def test_a_pass_that_is_stopped_leaves_nothing_behind() -> None:
    images, subset = pictures(4)
    kept = KeptPixels(subset, LIMIT)
    started: Iterator[Batch] = kept.batches(
        subset, SPEC, BATCH, lambda after: eval_loader(subset, [SPEC], BATCH, 0, after=after)
    )
    next(started)
    del started
    images.taken()
    assert [len(batch["index"]) for batch in passed(kept, subset)] == [2, 2]
    assert images.taken() == [0, 1, 2, 3]
    passed(kept, subset)
    assert images.taken() == []


def test_the_input_that_was_asked_for_longest_ago_makes_room() -> None:
    images, subset = pictures(4)
    kept = KeptPixels(subset, 4 * BYTES + 4 * 3 * 6 * 6)  # two inputs, but not three
    small = replace(SPEC, crop_pct=0.5)
    for spec in (SPEC, OTHER, SPEC, small):  # `small` needs the room of OTHER
        passed(kept, subset, spec)
    images.taken()
    passed(kept, subset, SPEC)
    passed(kept, subset, small)
    assert images.taken() == []
    passed(kept, subset, OTHER)
    assert images.taken() == [0, 1, 2, 3]


def test_what_is_kept_does_not_lie_in_the_memory_that_processes_share() -> None:
    """A container often has 64 MB of it."""
    _, subset = pictures(2)
    kept = KeptPixels(subset, LIMIT)

    def read(after: int) -> list[Batch]:
        batches = list(eval_loader(subset, [SPEC], BATCH, 0))
        for batch in batches:
            for images in batch["images"]:
                images.share_memory_()
        return batches

    list(kept.batches(subset, SPEC, BATCH, read))
    (batch,) = kept.batches(subset, SPEC, BATCH, read)
    assert not batch["images"][0].is_shared()
    assert batch["images"][0].is_contiguous(memory_format=torch.channels_last)


def test_processes_of_one_machine_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr("tutelage.data.kept.machine_memory", lambda: 64 * 10**9)
    assert default_limit() == LIMIT
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_limit() == LIMIT / 4
    monkeypatch.setattr("tutelage.data.kept.machine_memory", lambda: 8 * 10**9)
    assert default_limit() == 10**9 / 4
