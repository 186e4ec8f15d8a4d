"""The device of a process: chosen by name, kept for all that ask later, refused in one line where it is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import PartialState

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """PyTorch says that there are two GPUs; the devices that become the current one."""
    state, current = PartialState(), []
    before = state.device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    yield current
    state.device = before


def test_one_gpu_of_several_is_that_of_all_that_ask_later(two_gpus: list[torch.device]) -> None:
    wanted = torch.device("cuda", 1)
    assert Runtime.start("cuda:1").device == wanted
    assert Runtime.start().device == wanted
    assert two_gpus == [wanted]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("cuda:2", "--device cuda:2: no such device was found; the GPUs of this machine are cuda:0, cuda:1"),
        ("gpu", "--device gpu: use one of cpu, cuda, mps, or one GPU of several, such as cuda:1"),
        ("cuda:", "--device cuda:: use one of"),
        ("cpu:1", "--device cpu:1: use one of"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, line: str) -> None:
    with pytest.raises(TutelageError) as caught:
        Runtime.start(device)
    assert str(caught.value).startswith(line)


@pytest.mark.usefixtures("two_gpus")
def test_several_processes_do_not_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TutelageError, match="several processes cannot share one GPU"):
        Runtime.start("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_of_a_machine_without_any() -> None:
    with pytest.raises(TutelageError, match=r"--device cuda:1: no such device was found; use --device cpu"):
        Runtime.start("cuda:1")
