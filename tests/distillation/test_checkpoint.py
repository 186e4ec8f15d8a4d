"""Checkpoints: whole or refused, and every optimizer goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.stages import same
from timm.optim import create_optimizer_v2
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.distillation.checkpoint import (
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    state_of,
    unpack_optimizer,
)

OPTIMIZERS = ["adamw", "sgd", "lamb", "lion", "nadamw", "adafactor", "madgrad", "rmsproptf", "adopt", "muon"]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    return network.to(memory_format=torch.channels_last)


def optimizer_of(network: nn.Module, name: str) -> torch.optim.Optimizer:
    return create_optimizer_v2(network, opt=name, lr=1e-2, weight_decay=0.05, momentum=0.9)


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for number in range(first, first + count):
        torch.manual_seed(number)
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    network = small_network()
    optimizer = optimizer_of(network, name)
    steps(network, optimizer, 0, 3)
    tensors, packed = pack_optimizer(optimizer)
    save_checkpoint(tmp_path / "c.safetensors", {"model": network.state_dict(), "optimizer": tensors}, packed)
    steps(network, optimizer, 3, 3)

    other = small_network()
    groups, packed = load_checkpoint(tmp_path / "c.safetensors")
    other.load_state_dict(groups["model"])
    again = optimizer_of(other, name)
    unpack_optimizer(again, groups.get("optimizer", {}), packed)
    steps(other, again, 3, 3)
    assert same(state_of(other), state_of(network))


def test_an_optimizer_that_cannot_be_kept_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.LBFGS([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(TutelageError, match=r"train\.optimizer: LBFGS keeps a list"):
        pack_optimizer(optimizer)


def test_groups_and_meta_data_come_back(tmp_path: Path) -> None:
    state = state_of(small_network())
    save_checkpoint(tmp_path / "c.safetensors", {"model": state, "best": {}}, {"step": 3, "best": None})
    groups, meta = load_checkpoint(tmp_path / "c.safetensors")
    assert same(groups["model"], state)
    assert meta == {"step": 3, "best": None}
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_one_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"model": state_of(small_network())}, {"step": 3})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(TutelageError, match=r"c\.safetensors: damaged checkpoint .* remove it"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"model": state_of(small_network())}, {"step": 3})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TutelageError, match="damaged checkpoint"):
        load_checkpoint(path)
