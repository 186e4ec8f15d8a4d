"""The device, the processes and the precision of a run. All code that depends on the kind of device is here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

from tutelage.core.errors import Incomplete, TutelageError, WeakTeacher, one_line
from tutelage.core.memory import keep_freed_memory
from tutelage.core.processes import OtherFailed, peers
from tutelage.core.recipe import TrainRecipe

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]
DEVICES = ("cpu", "cuda", "mps")
_alone = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Runtime:
    """The device, the processes and the precision of a run.

    Attributes:
        accelerator: device and processes, as the launcher set them up.
        precision: of the student's training. Figures are in fp32, except those by which candidates are screened.
        place: a device other than the accelerator's.
    """

    accelerator: Accelerator
    precision: Precision = "fp32"
    place: torch.device | None = None

    @classmethod
    def start(cls, device: str | None = None) -> Runtime:
        """Set up the runtime of this process, which then has this device.

        The recipe decides the precision, not the launcher, so accelerate's own setting is switched off.

        Args:
            device: ``cpu``, ``mps``, ``cuda``, or one GPU such as ``cuda:1``; None: the one that this process has
                already, else the best available one.

        Raises:
            TutelageError: the device is unknown or not available.
        """
        chosen = None if device is None else _checked(device)
        if chosen is not None and chosen.index is not None:
            torch.cuda.set_device(chosen)
        if (
            chosen is not None
            and (chosen.index is not None or is_initialized())
            and PartialState().num_processes == 1
        ):
            PartialState().device = chosen  # accelerate keeps it for all that ask later
        runtime = cls(Accelerator(mixed_precision="no", cpu=device == "cpu"))
        if runtime.device.type == "cpu":
            keep_freed_memory()
        peers()  # from here on, this process ends where another one fails
        return runtime

    @classmethod
    def on_cpu(cls) -> Runtime:
        """The CPU, for some of the work of a process that keeps the device that it has."""
        keep_freed_memory()
        return replace(cls.start(), place=torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        """The device of models and tensors."""
        return self.place or self.accelerator.device

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, the only one that writes files and reports progress."""
        return self.accelerator.is_main_process

    def check(self, train: TrainRecipe) -> None:
        """Refuse settings of a training that this device does not have.

        Raises:
            TutelageError: names the key.
        """
        if train.precision == "fp16" and self.device.type != "cuda":
            raise TutelageError(
                f"train.precision=fp16: needs a CUDA GPU, and this run is on {self.device.type}; use "
                "train.precision=auto, bf16 or fp32"
            )
        if train.sync_batchnorm and self.world_size > 1 and self.device.type != "cuda":
            raise TutelageError(
                f"train.sync_batchnorm=true: PyTorch has it for CUDA GPUs only, and this run is on {self.device.type}; "
                "use train.frozen_batchnorm=true or larger batches"
            )

    def autocast(self, precision: Precision | None = None) -> torch.autocast:
        """Return a context manager that computes in a precision, by default the run's own."""
        return autocast(self.device, precision or self.precision)

    def wait(self) -> None:
        """Wait until every process has called this, for hours if one of them needs them."""
        if others := peers():
            others.meet()
            self.accelerator.wait_for_everyone()  # none ends the store while another one still asks it

    def from_main(self, values: Sequence[Any]) -> list[Any]:
        """Return the first process's values in every process; they have to be picklable.

        The others wait for the first process, for hours if it needs them.
        """
        shared = list(values)
        if others := peers():
            others.follow_main()
            broadcast_object_list(shared)
        return shared

    def on_main(self, call: Callable[[], T]) -> T:
        """Call a function in the first process while the others wait, and return its result in every process.

        Where it raises an error, every process raises one, so that none waits for a process that has ended. The others
        wait without a collective operation, so that the call may take hours.

        Args:
            call: returns a picklable value; it must not call anything that all processes have to call together.

        Raises:
            TutelageError: in the processes that did not call it, with the first one's message; `WeakTeacher` and
                `Incomplete` are those in all processes. In the first process, the error itself.
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
        result, failed = self.from_main([result, None if raised is None else _transferable(raised)])
        if raised is not None:
            raise raised
        if failed is not None:
            kind, arguments = failed
            raise kind(*arguments)
        return cast(T, result)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process; all processes get the same answers."""
        if self.world_size == 1:
            return list(flags)
        own = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return [bool(found) for found in self.accelerator.reduce(own, "sum") > 0]

    def least(self, number: int) -> int:
        """Return the smallest of the numbers that the processes have."""
        if self.world_size == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).min())

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        mean: Tensor = self.accelerator.reduce(tensor, "mean")
        return mean

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every process the first one's buffers (BatchNorm statistics), so that all evaluate the same network."""
        broadcast(list(module.buffers()))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context manager that computes in a precision; fp32 changes nothing."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def gathered(batch: Tensor) -> Tensor:
    """Join the rows (B, ...) of all processes to (B * processes, ...), in their order; gradients flow back to each.

    Every process has to call it together, with as many rows as the others. One process gets its own rows, and so does
    each of several within `alone`.
    """
    if _alone.get() or not (
        distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    ):
        return batch
    return torch.cat(all_gather(batch.contiguous()))


@contextmanager
def alone() -> Iterator[None]:
    """Let this process compute without the others: `gathered` does not wait for them."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """Let cuDNN take the fastest of its algorithms, or let all give the same result each time (on CUDA only).

    Args:
        deterministic: as the recipe has it.

    Raises:
        TutelageError: an operation has no deterministic algorithm.
    """
    before, tried = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS has no such algorithms without it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if not deterministic or "does not have a deterministic implementation" not in str(error):
            raise
        raise TutelageError(
            f"train.deterministic: {one_line(error).partition(',')[0]}; use train.deterministic=false"
        ) from None
    finally:
        torch.backends.cudnn.benchmark = tried
        if deterministic:
            torch.use_deterministic_algorithms(before)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device; the CPU does not wait until a GPU has taken it.

    A copy from pageable memory may wait for all queued work of a GPU, so on CUDA it goes through page-locked memory.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its queued work; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_gpu() -> bool:
    """Whether there is a GPU to which pinned memory is copied faster."""
    return torch.cuda.is_available()


def gpu_in_use() -> torch.device | None:
    """The CUDA GPU that this process works on; None on another device, and before a `Runtime` has started."""
    device = PartialState().device if is_initialized() else None
    return device if device is not None and device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_name() -> str | None:
    """Return the product name of the GPU that is used; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _transferable(error: Exception) -> tuple[type[TutelageError], tuple[Any, ...]]:
    """Return the class and the arguments of the error that other processes raise in place of one of the first."""
    if isinstance(error, OtherFailed):
        return OtherFailed, (str(error), error.exit_code)
    if not isinstance(
        error, TutelageError
    ):  # a fault of the program, whose traceback the first process shows
        return OtherFailed, (f"{type(error).__name__}: {one_line(error)}", 1)
    kind = next((one for one in (WeakTeacher, Incomplete) if isinstance(error, one)), TutelageError)
    return kind, (str(error),)


def _checked(device: str) -> torch.device:
    """Return a device by the name that a user gave, such as ``cpu`` or ``cuda:1``.

    Raises:
        TutelageError: the name is unknown, or there is no such device.
    """
    found = re.fullmatch(r"(cpu|mps|cuda)|cuda:(\d+)", device)
    if found is None:
        raise TutelageError(
            f"--device {device}: use one of {', '.join(DEVICES)}, or one GPU of several, such as cuda:1"
        )
    kind, number = found[1] or "cuda", found[2]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise TutelageError(f"--device {device}: no such device was found; use --device cpu")
    if number is None:
        return torch.device(kind)
    if int(number) >= (count := torch.cuda.device_count()):
        raise TutelageError(
            f"--device {device}: no such device was found; the GPUs of this machine are "
            f"{', '.join(f'cuda:{place}' for place in range(count))}"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TutelageError(
            f"--device {device}: several processes cannot share one GPU; leave it out, or set CUDA_VISIBLE_DEVICES"
        )
    return torch.device(kind, int(number))
