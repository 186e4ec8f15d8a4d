"""Gradients of depthwise convolutions: those of PyTorch, by a quicker way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import create_model
from torch import Tensor

from tutelage.models import depthwise
from tutelage.models.depthwise import quick_depthwise

CPU = torch.device("cpu")


def gradients(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> list[Tensor]:
    """Of a weighted sum of the outputs, in float32."""
    leaves = [t.clone().requires_grad_() for t in (images, weight, *([] if bias is None else [bias]))]
    output = F.conv2d(*leaves, stride=stride, padding=padding, groups=len(weight))
    coefficients = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.float() * coefficients).sum().backward()
    return [output.detach().float(), *(t.grad.float() for t in leaves if t.grad is not None)]


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    height=st.integers(7, 12),
    width=st.integers(7, 12),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_they_are_pytorchs(
    kernel: int, stride: int, padding: int, height: int, width: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    images = torch.randn(2, 4, height, width).contiguous(memory_format=torch.channels_last)
    weight, offset = torch.randn(4, 1, kernel, kernel), torch.randn(4) if bias else None
    wanted = gradients(images, weight, offset, stride, padding)
    with torch.autocast("cpu", torch.bfloat16), quick_depthwise(CPU):
        found = gradients(images, weight, offset, stride, padding)
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.shape == exact.shape
        assert (ours - exact).norm() <= 0.02 * exact.norm() + 1e-6  # bf16 keeps 8 bits


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "dilation", "amp", "taken"),
    [
        (5, 1, 8, 1, True, True),
        (3, 2, 8, 1, True, True),
        (3, 1, 8, 1, True, False),  # oneDNN is quick
        (5, 2, 8, 2, True, False),
        (5, 2, 4, 1, True, False),
        (5, 2, 1, 1, True, False),
        (5, 2, 8, 1, False, False),
    ],
)
def test_only_slow_ones_are_taken(
    kernel: int,
    stride: int,
    groups: int,
    dilation: int,
    amp: bool,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    whole = depthwise._convolve
    monkeypatch.setattr(depthwise, "_convolve", lambda *a, **k: calls.append(1) or whole(*a, **k))
    layer = torch.nn.Conv2d(8, 8, kernel, stride, groups=groups, dilation=dilation)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp), quick_depthwise(CPU):
        layer(torch.randn(1, 8, 16, 16))
        with torch.no_grad():
            layer(torch.randn(1, 8, 16, 16))
    assert len(calls) == taken


@pytest.mark.parametrize(("size", "small"), [(7, True), (8, False)])
def test_weights_of_small_images_come_from_pairs_of_pixels(
    size: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = depthwise._by_pixels
    monkeypatch.setattr(depthwise, "_by_pixels", lambda *a: calls.append(1) or whole(*a))
    torch.manual_seed(0)
    images = torch.randn(3, 8, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 1, 5, 5)
    wanted = gradients(images, weight, None, 1, 2)
    with torch.autocast("cpu", torch.bfloat16), quick_depthwise(CPU):
        found = gradients(images, weight, None, 1, 2)
    assert bool(calls) is small
    assert (found[2] - wanted[2]).norm() <= 0.01 * wanted[2].norm()


def test_a_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own padding layers (those of tf_ models) are taken too, and all parameters have their gradients."""
    taken: list[int] = []
    whole = depthwise._convolve
    monkeypatch.setattr(depthwise, "_convolve", lambda *a, **k: taken.append(1) or whole(*a, **k))
    torch.manual_seed(0)
    network = create_model(
        "tf_efficientnet_lite0", num_classes=4
    ).eval()  # no batch statistics to amplify rounding
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def gradient(quick: bool, amp: bool) -> Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            if quick:
                with quick_depthwise(CPU):
                    output = network(images)
            else:
                output = network(images)
        F.cross_entropy(output.float(), torch.tensor([1, 2])).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    exact, theirs, ours = gradient(False, False), gradient(False, True), gradient(True, True)
    assert len(ours) == len(exact)
    assert len(taken) == 11  # the strided and the 5x5 of its 16
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()
