"""Predictions: each image once, and only those that could be decoded every time are held against one another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.helpers.stages import network, small_context, small_splits
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage
from tutelage.data.kept import KeptPixels
from tutelage.data.loading import Loading
from tutelage.data.sources.base import ImageSet
from tutelage.evaluation.predict import BATCH, Predictions, in_common, predict_logits


class Spoilt(ImageSet):
    """Digits, some of which cannot be decoded."""

    def __init__(self, source: ImageSet, spoilt: set[int]) -> None:
        super().__init__(source.name, source.origin, list(source.ids), source.classes, source.labels)
        self.source, self.spoilt = source, spoilt

    def image(self, index: int) -> Image.Image:
        if index in self.spoilt:
            raise UnreadableImage(self.ids[index], "truncated")
        return self.source.image(index)


def test_an_unreadable_image_is_left_out_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    subset = small_splits().test
    model = network("test_efficientnet", 0)
    context = small_context(tmp_path, max_bad=1)
    whole = predict_logits(model.module, model.input_spec, subset, context.runtime, Loading(0))
    spoilt = replace(subset, images=Spoilt(subset.images, {int(subset.indices[3])}))
    some = predict_logits(model.module, model.input_spec, spoilt, context.runtime, context.loading)
    assert some.index.tolist() == [i for i in whole.index.tolist() if i != 3]
    common = in_common([whole, some])
    assert common[0].index.equal(common[1].index)
    torch.testing.assert_close(common[0].logits, common[1].logits)


def test_what_was_read_once_but_not_again_takes_no_part() -> None:
    one = Predictions(torch.arange(4.0)[:, None], torch.tensor([0, 1, 2, 3]))
    other = Predictions(torch.tensor([[10.0], [13.0]]), torch.tensor([0, 3]))
    first, second = in_common([one, other])
    assert first.index.tolist() == second.index.tolist() == [0, 3]
    assert first.logits.flatten().tolist() == [0, 3]
    assert second.logits.flatten().tolist() == [10, 13]


def test_a_part_of_which_nothing_can_be_decoded_ends_in_one_line(tmp_path: Path) -> None:
    subset = small_splits().test
    model = network("test_efficientnet", 0)
    context = small_context(tmp_path, max_bad=len(subset))
    spoilt = replace(subset, images=Spoilt(subset.images, set(subset.indices.tolist())))
    with pytest.raises(TutelageError, match="none of the images can be decoded"):
        predict_logits(model.module, model.input_spec, spoilt, context.runtime, context.loading)


class KillsItsLoader(nn.Module):
    """As the system does when memory runs out, while the main process computes."""

    def forward(self, images: Tensor) -> Tensor:
        for child in multiprocessing.active_children():
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(10)  # torch tells of it in here
        return images.flatten(1)


def test_a_loader_process_that_dies_meanwhile_ends_in_one_line(tmp_path: Path) -> None:
    subset = small_splits().test
    subset = replace(subset, indices=subset.indices.repeat(-(-2 * BATCH // len(subset))))  # it has more to do
    runtime = small_context(tmp_path).runtime
    with pytest.raises(TutelageError, match=r"a loader process died.*data\.workers"):
        predict_logits(
            KillsItsLoader(), network("test_efficientnet", 0).input_spec, subset, runtime, Loading(1)
        )


def test_kept_images_give_the_same_logits_and_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset, models = small_splits().test, [network("test_efficientnet", 0), network("test_resnet", 1)]
    runtime = small_context(tmp_path).runtime
    spec = models[0].input_spec
    inputs = [(models[0].module, spec), (models[1].module, replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3))]
    plain = [predict_logits(*network, subset, runtime, Loading(0)) for network in inputs]
    read = []
    image = type(subset).image
    monkeypatch.setattr(type(subset), "image", lambda self, i: read.append(i) or image(self, i))
    loading = Loading(0, kept=KeptPixels(subset))
    for _ in range(2):
        for network_, wanted in zip(inputs, plain, strict=True):
            found = predict_logits(*network_, subset, runtime, loading)
            assert found.logits.equal(wanted.logits)
            assert found.index.equal(wanted.index)
    assert read == list(range(len(subset)))  # both networks have the same pixels
