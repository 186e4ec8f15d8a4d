"""Statistics of BatchNorm, measured again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import BadImages, Loading
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import whole
from tutelage.models.batchnorm import BATCH, decode_sample, recalibrate

GREYS = (0, 60, 120, 180)
SPEC = InputSpec(height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")


class Greys(ImageSet):
    """A grey a class, sorted by class, so many of each; some images cannot be decoded."""

    def __init__(self, each: int, unreadable: tuple[int, ...] = ()) -> None:
        labels = np.repeat(np.arange(len(GREYS)), each)
        super().__init__("greys", "here", [str(i) for i in range(len(labels))], list("abcd"), labels)
        self.unreadable = unreadable

    def image(self, index: int) -> Image.Image:
        if index in self.unreadable:
            raise UnreadableImage(self.ids[index], "cut off")
        return Image.new("RGB", (8, 8), (GREYS[self.labels[index]],) * 3)


def loading(limit: int = 0) -> Loading:
    return Loading(0, BadImages(limit))


def recalibrated(network: nn.Module, batches: list[Tensor]) -> nn.BatchNorm2d:
    recalibrate(network, SPEC, batches, CPU)
    layer = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer


@pytest.mark.parametrize("each", [BATCH, BATCH + 1, 7])
def test_images_that_lie_sorted_by_class_count_as_a_mixture(each: int) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    layer = recalibrated(network, decode_sample(whole(Greys(each)), SPEC, loading()))
    greys = np.array(GREYS) / 255
    assert layer.running_mean.tolist() == pytest.approx([greys.mean()] * 3, rel=1e-5)
    assert layer.running_var.tolist() == pytest.approx([greys.var()] * 3, rel=1e-3)
    assert not network.training
    assert layer.momentum == 0.1


@pytest.mark.parametrize("sizes", [[2, 2], [129], [128, 1], [128, 4], [64, 65], [1] * 20])
def test_each_image_counts_alike_however_the_batches_are_cut(sizes: list[int]) -> None:
    """The statistics of one layer are those over all images, in whatever batches these come."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (sum(sizes), 3, 8, 8), dtype=torch.uint8)
    images[: sizes[0]] //= 2  # the batches differ
    layer = recalibrated(nn.Sequential(nn.BatchNorm2d(3)), list(images.split(sizes)))
    values = images.double() / 255
    assert layer.running_mean.tolist() == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert layer.running_var.tolist() == pytest.approx(values.var((0, 2, 3)).tolist(), rel=1e-5)


@pytest.mark.parametrize("images", [BATCH + 1, BATCH + 4])
def test_deep_layers_have_nearly_the_statistics_of_one_batch_of_all_images(images: int) -> None:
    torch.manual_seed(0)
    blocks = [[nn.Conv2d(width, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()] for width in (3, 16, 16)]
    network = nn.Sequential(*(layer for block in blocks for layer in block))
    pixels = torch.randint(0, 256, (images, 3, 8, 8), dtype=torch.uint8)
    pixels //= torch.randint(1, 5, (images, 1, 1, 1))

    def variances(batches: list[Tensor]) -> Tensor:
        recalibrate(network, SPEC, batches, CPU)
        return torch.cat([m.running_var for m in network if isinstance(m, nn.BatchNorm2d)])  # type: ignore[misc]

    exact = variances([pixels])
    halves = variances(list(pixels.tensor_split(2)))
    assert (halves / exact).sub(1).abs().max() < 0.1


def test_a_sample_has_no_small_last_batch() -> None:
    sizes = [len(batch) for batch in decode_sample(whole(Greys(BATCH // 4 + 1)), SPEC, loading())]
    assert sizes == [66, 66]


def test_one_pixel_maps_and_one_image_too_many_for_a_batch_are_no_error() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    unreadable = tuple(range(3))
    batches = decode_sample(whole(Greys(BATCH // 4 + 1, unreadable)), SPEC, loading(3))
    assert sum(map(len, batches)) == BATCH + 1
    assert recalibrated(network, batches).running_var.min() > 0


def test_a_single_image_changes_nothing() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    layer = recalibrated(network, [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.running_var.tolist() == [1, 1, 1]


def test_images_that_cannot_be_decoded_are_left_out_and_counted() -> None:
    counted = loading(2)
    batches = decode_sample(whole(Greys(5, (0, 19))), SPEC, counted)
    assert sum(map(len, batches)) == 18
    assert set(counted.bad.reasons) == {"0", "19"}
    with pytest.raises(TutelageError, match=r"data\.max_bad_images=1: 2 cannot be decoded"):
        decode_sample(whole(Greys(5, (0, 19))), SPEC, loading(1))
