"""Grad-CAM: the map of a network whose map is known, where a class is, and networks that can have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.evaluation.gradcam import DARKEST, heat_maps, overlay
from tutelage.models.registry import load_model
from tutelage.models.source import Model


class Pooled(nn.Module):
    """One convolution, a ReLU, the mean over all places, and a linear layer: Grad-CAM is then CAM (Zhou 2016)."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, stride=4)
        self.act = nn.ReLU(inplace)
        self.head = nn.Linear(6, 4)
        self.num_classes = 4
        self.feature_info = [{"module": "act"}]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.body(images)).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_it_is_the_class_activation_map_where_that_is_known(inplace: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    network = Pooled(inplace).eval().requires_grad_(not frozen)
    images = torch.randn(3, 3, 32, 32)
    heat, classes = heat_maps(Model.of(network, input_spec=InputSpec(32, 32)), images)
    with torch.no_grad():
        features = network.act(network.body(images)).double().numpy()
        weights = network.head.weight.double().numpy()
        assert classes.tolist() == network(images).argmax(1).tolist()
    expected = np.maximum(np.einsum("bc,bchw->bhw", weights[classes], features), 0)
    expected /= expected.max((1, 2), keepdims=True)
    assert heat == pytest.approx(expected, abs=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 64), ("test_efficientnet", 32), ("test_vit", 160), ("test_convnext", 160)],
)
def test_networks_of_timm_have_maps_of_at_least_four_by_four_places(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = load_model(f"{name}@none", num_classes=10).at(size)
    heat, classes = heat_maps(model, torch.randn(2, 3, size, size))
    assert min(heat.shape[1:]) >= 4
    assert heat.shape[0] == len(classes) == 2
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1)
    assert np.ptp(heat[0]) > 0.1  # of a transformer too, whose last tokens of patches have no gradient


def test_a_network_without_a_grid_is_named() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    flat.num_classes = 4
    with pytest.raises(TutelageError, match="name the layer"):
        heat_maps(Model.of(flat, input_spec=InputSpec(8, 8)), torch.randn(1, 3, 8, 8))
    small = load_model("test_resnet@none", num_classes=10).at(8)
    with pytest.raises(TutelageError) as caught:
        heat_maps(small, torch.randn(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_an_overlay_is_dark_where_the_class_is_not() -> None:
    heat = np.zeros((4, 4))
    heat[:, 3] = 1
    picture = overlay(np.full((200, 300, 3), 200, np.uint8), heat)
    assert picture.shape == (128, 128, 3)
    assert picture[64, 4].tolist() == [round(200 * DARKEST)] * 3
    assert picture[64, 124].tolist() == [200] * 3
