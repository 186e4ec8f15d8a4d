import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tutelage.evaluation.size import gmacs, params_m, size_mb


class Attention(nn.Module):
    """Attention of an image's rows over its rows, with one parameter to have a device."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        rows = images * self.scale
        return scaled_dot_product_attention(rows, rows, rows)


def test_bytes_are_those_of_parameters_and_buffers() -> None:
    module = nn.Sequential(nn.Linear(256, 1024, bias=False), nn.BatchNorm1d(1024))
    numbers = 256 * 1024 + 2 * 1024 + 2 * 1024  # weight, affine, running statistics
    assert size_mb(module) == pytest.approx((4 * numbers + 8) / 2**20)  # the batch count is an int64
    assert size_mb(module.half()) == pytest.approx((2 * numbers + 8) / 2**20)


def test_shared_parameters_count_once() -> None:
    one = nn.Linear(10, 10, bias=False)
    assert params_m(nn.ModuleList([one, one])) == pytest.approx(100 / 1e6)


@pytest.mark.parametrize(("name", "megabytes"), [("efficientvit_b3", 185.75), ("efficientvit_b1", 34.77)])
def test_the_study_counted_the_same_megabytes(name: str, megabytes: float) -> None:
    with torch.device("meta"):
        module = timm.create_model(name)
    assert size_mb(module) == pytest.approx(megabytes, abs=0.005)


def test_macs_of_a_convolution_and_its_mode_afterwards() -> None:
    module = nn.Conv2d(3, 8, 3, padding=1, bias=False).train()
    assert gmacs(module, 10, 20) == pytest.approx(3 * 9 * 8 * 10 * 20 / 1e9)
    assert module.training


def test_macs_include_attention() -> None:
    # two products of (12, 20) with (20, 12) and (12, 12) with (12, 20), for each of three channels
    assert gmacs(Attention(), 12, 20) == pytest.approx(3 * 2 * 12 * 12 * 20 / 1e9)


def test_macs_of_resnet50_are_the_published_ones() -> None:
    assert gmacs(timm.create_model("resnet50"), 224, 224) == pytest.approx(4.09, abs=0.01)
