"""New heads: they know nothing, and say so."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tutelage.data.input_spec import InputSpec
from tutelage.models.registry import load_model
from tutelage.models.source import Model

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_mambaout", "test_nfnet"]


def plain() -> Model:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    return Model.of(module, input_spec=InputSpec(32, 32), name="plain")


@pytest.mark.parametrize("name", [*NETWORKS, "deit_tiny_distilled_patch16_224", "plain"])
def test_the_first_loss_of_a_new_head_is_that_of_a_uniform_guess(name: str) -> None:
    """With timm's own initialisation an EfficientNet's opens at 8.4, where ln 5 is 1.6."""
    torch.manual_seed(0)
    model = plain() if name == "plain" else load_model(f"{name}@none")
    body = {key: value.clone() for key, value in model.module.state_dict().items()}
    model = model.with_head([f"class-{number}" for number in range(7)])
    images = 3 * torch.randn(4, 3, model.input_spec.height, model.input_spec.width)
    loss = cross_entropy(model.module(images), torch.tensor([0, 1, 2, 6]))
    assert loss.item() == pytest.approx(math.log(7), abs=1e-5)
    head = {id(parameter) for parameter in model.head_parameters()}
    kept = {key for key, parameter in model.module.named_parameters() if id(parameter) not in head}
    assert kept
    assert all(torch.equal(model.module.state_dict()[key], body[key]) for key in kept)


def test_a_new_head_learns_and_passes_a_gradient_on_from_the_second_step() -> None:
    torch.manual_seed(0)
    model = load_model("test_efficientnet@none").with_head(5)
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 5
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(cross_entropy(model.module.train()(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert model.module.conv_stem.weight.grad.abs().max() > 0


def test_timm_draws_a_head_that_opens_far_above() -> None:
    """Why it is set to zero: to notice when timm changes."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    features = 3 * torch.rand(64, 1280)  # after ReLU6 and pooling, of the size that trained weights have
    loss = cross_entropy(network.classifier(features), torch.arange(64) % 5)
    assert loss > 2 * math.log(5)
