"""Which arithmetic is faster, on networks that wait."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch import Tensor, nn

from tutelage.data.input_spec import InputSpec
from tutelage.models.precision import ROUNDS, faster, probe_inference, probe_training

CPU = torch.device("cpu")
SPEC = InputSpec(height=8, width=8)


class Waiting(nn.Module):
    """Takes the given seconds a call, by precision."""

    def __init__(self, **seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, Counter[str]()

    def forward(self, images: Tensor) -> Tensor:
        precision = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        self.calls[precision] += 1
        time.sleep(self.seconds[precision])
        return images


def test_the_faster_one_is_found() -> None:
    assert faster(probe_inference(Waiting(fp32=0.02, bf16=0.005), SPEC, 2, CPU)) == "bf16"
    assert faster(probe_inference(Waiting(fp32=0.005, bf16=0.02), SPEC, 2, CPU)) == "fp32"


def test_a_gain_that_is_noise_is_none() -> None:
    assert faster({"fp32": 100.0, "bf16": 109.0}) == "fp32"
    assert faster({"fp32": 100.0, "bf16": 111.0}) == "bf16"


def test_what_is_hopelessly_slow_is_tried_once() -> None:
    network = Waiting(fp32=0.01, bf16=0.2)
    rates = probe_inference(network, SPEC, 2, CPU)
    assert network.calls == {"fp32": ROUNDS + 1, "bf16": 1}
    assert rates["bf16"] < rates["fp32"] / 3


def test_training_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rates = probe_training(network, SPEC, 4, CPU)
    assert min(rates.values()) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not network.training


def test_only_the_wanted_precision_is_run() -> None:
    """Another one might need more memory than there is."""
    network = Waiting(fp32=0.001, bf16=0.001)
    assert set(probe_inference(network, SPEC, 2, CPU, ("bf16",))) == {"bf16"}
    assert network.calls == {"bf16": ROUNDS + 1}
