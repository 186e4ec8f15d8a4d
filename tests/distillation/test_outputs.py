"""Teacher's outputs are copied to a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.distillation.outputs import Outputs, TopK
from tutelage.models.features import POOLED


class Copies(TorchDispatchMode):
    """Records whether each copy to another device lets the CPU go on."""

    def __init__(self) -> None:
        super().__init__()
        self.non_blocking: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_to_copy":
            self.non_blocking.append(bool((kwargs or {}).get("non_blocking")))
        return func(*args, **(kwargs or {}))


def test_the_cpu_does_not_wait_for_a_gpu_to_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU, each tensor goes through page-locked memory, without which a copy waits."""
    pinned: list[tuple[int, ...]] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    with FakeTensorMode(), Copies() as copies:
        targets = TopK(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2))
        for outputs in (Outputs(torch.zeros(4, 3), {POOLED: torch.zeros(4, 5)}), Outputs(targets)):
            outputs.to(torch.device("cuda"))
    assert pinned == [(4, 3), (4, 5), (4, 2), (4, 2)]
    assert copies.non_blocking == [True] * 4


def test_on_the_cpu_they_stay_as_they_are() -> None:
    outputs = Outputs(torch.ones(4, 3), {POOLED: torch.ones(4, 5)})
    found = outputs.to(torch.device("cpu"))
    assert found.logits is outputs.logits
    assert found.features[POOLED] is outputs.features[POOLED]
    assert Outputs(None).to(torch.device("cpu")).logits is None
