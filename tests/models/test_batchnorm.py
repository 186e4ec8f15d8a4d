"""Statistics of BatchNorm, measured anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tutelage.data.input_spec import InputSpec
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import whole
from tutelage.models.batchnorm import BATCH, recalibrate

GREYS = (0, 60, 120, 180)


class Greys(ImageSet):
    """A grey a class, sorted by class, a batch of each."""

    def __init__(self) -> None:
        labels = np.repeat(np.arange(len(GREYS)), BATCH)
        super().__init__("greys", "here", [str(i) for i in range(len(labels))], list("abcd"), labels)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (GREYS[self.labels[index]],) * 3)


def test_images_that_lie_sorted_by_class_count_as_a_mixture() -> None:
    spec = InputSpec(height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    network = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(network, spec, whole(Greys()), torch.device("cpu"))
    layer = network[0]
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    greys = np.array(GREYS) / 255
    assert layer.running_mean.tolist() == pytest.approx([greys.mean()] * 3, rel=1e-3)
    assert layer.running_var.tolist() == pytest.approx([greys.var()] * 3, rel=0.05)
    assert not network.training
    assert layer.momentum == 0.1
