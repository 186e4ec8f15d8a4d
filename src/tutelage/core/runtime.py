"""Where a run computes: device, processes and arithmetic. Nothing else asks for a kind of device by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from tutelage.core.errors import TutelageError

T = TypeVar("T")
Precision = Literal["fp32", "bf16"]
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Runtime:
    """Device, processes and arithmetic of a run.

    Attributes:
        accelerator: device and processes, as the launcher set them up.
        precision: in which students are trained; figures are always taken in fp32.
    """

    accelerator: Accelerator
    precision: Precision = "fp32"

    @classmethod
    def start(cls, device: str | None = None) -> Runtime:
        """The runtime of this process.

        The precision is the recipe's and not the launcher's, hence accelerate's own is switched off.

        Args:
            device: ``cpu``, ``cuda`` or ``mps``; None: the best there is.

        Raises:
            TutelageError: the device is unknown or not there.
        """
        if device is not None:
            _check_device(device)
        return cls(Accelerator(mixed_precision="no", cpu=device == "cpu"))

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports: one does."""
        return self.accelerator.is_main_process

    def autocast(self, precision: Precision | None = None) -> torch.autocast:
        """A precision (by default the run's own) as a context manager."""
        return autocast(self.device, precision or self.precision)

    def wait(self) -> None:
        """Return when every process has come here."""
        self.accelerator.wait_for_everyone()

    def from_main(self, values: Sequence[Any]) -> list[Any]:
        """The first process's values, in every process; they have to be picklable."""
        shared = list(values)
        broadcast_object_list(shared)
        return shared

    def on_main(self, call: Callable[[], T]) -> T:
        """Call a function in the first process only, while the others wait; its result in every process.

        Where it raises an error, every process raises one, so that none waits for ever for one that has ended.

        Args:
            call: returns what can be pickled; it takes part in nothing that all processes do together.

        Raises:
            TutelageError: in the processes that did not call it, with the first one's message, whatever was raised
                there; in the first process, the error itself.
        """
        if self.world_size == 1:
            return call()
        result: Any = None
        raised: Exception | None = None
        if self.is_main:
            try:
                result = call()
            except Exception as error:
                raised = error
        result, reason = self.from_main([result, None if raised is None else str(raised) or repr(raised)])
        if raised is not None:
            raise raised
        if reason is not None:
            raise TutelageError(reason)
        return cast(T, result)

    def any(self, *flags: bool) -> list[bool]:
        """Whether a flag is set in any process: the same answers in each, so that none waits for the others."""
        if self.world_size == 1:
            return list(flags)
        mine = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return [bool(found) for found in self.accelerator.reduce(mine, "sum") > 0]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        mean: Tensor = self.accelerator.reduce(tensor, "mean")
        return mean

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every process the first one's buffers (BatchNorm statistics): figures are taken of one network."""
        broadcast(list(module.buffers()))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A precision as a context manager; fp32 changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_gpu() -> bool:
    """Whether an accelerator that takes pinned memory is there."""
    return torch.cuda.is_available()


def device_name(device: torch.device) -> str:
    """A device as people name it: the GPU's product name, else its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_name() -> str | None:
    """Product name of the first GPU; None without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise TutelageError(f"--device {device}: use one of {', '.join(DEVICES)}")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise TutelageError(f"--device {device}: no such device was found; use --device cpu")
