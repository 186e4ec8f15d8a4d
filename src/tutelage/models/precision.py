"""Which precision is faster on this machine, measured with a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from tutelage.core.runtime import Precision, autocast, synchronise
from tutelage.data.input_spec import InputSpec
from tutelage.models.depthwise import quick_depthwise

ROUNDS = 3
HOPELESS = 3.0  # times as slow in the first round: then bf16 is not timed again, which takes minutes on CPUs without it
WORTH_IT = 1.1  # a smaller gain is not worth bf16's rounding, and would make the choice a matter of noise


BOTH: tuple[Precision, ...] = ("fp32", "bf16")


def probe_training(
    module: nn.Module,
    spec: InputSpec,
    batch_size: int,
    device: torch.device,
    precisions: Sequence[Precision] = BOTH,
) -> dict[Precision, float]:
    """Measure images/s of forward and backward in each precision. The module's state is as before afterwards.

    Args:
        module: the network, on the device.
        spec: its images.
        batch_size: images of one process.
        device: where it runs.
        precisions: those to measure; others, which might need more memory than there is, are not run.
    """
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    images = _images(spec, batch_size, device)
    module.train()

    def step() -> None:
        with quick_depthwise(device):
            output = module(images)
        output.float().square().mean().backward()

    rates = _alternate(step, batch_size, device, precisions)
    module.zero_grad(set_to_none=True)
    module.load_state_dict(state)
    module.eval()
    return rates


def probe_inference(
    module: nn.Module,
    spec: InputSpec,
    batch_size: int,
    device: torch.device,
    precisions: Sequence[Precision] = BOTH,
) -> dict[Precision, float]:
    """Measure images/s of the forward pass in each precision; arguments as those of `probe_training`."""
    images = _images(spec, batch_size, device)

    def step() -> None:
        with torch.no_grad():
            module(images)

    return _alternate(step, batch_size, device, precisions)


def faster(rates: dict[Precision, float]) -> Precision:
    """bf16 where it is clearly faster, else fp32."""
    return "bf16" if rates["bf16"] > WORTH_IT * rates["fp32"] else "fp32"


def _images(spec: InputSpec, batch_size: int, device: torch.device) -> Tensor:
    images = torch.randn(batch_size, 3, spec.height, spec.width, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def _alternate(
    step: Callable[[], None], batch_size: int, device: torch.device, precisions: Sequence[Precision]
) -> dict[Precision, float]:
    seconds: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for number in range(ROUNDS + 1):  # the first warms up
        for precision, times in seconds.items():
            if number and len(precisions) > 1 and times[0] > HOPELESS * seconds["fp32"][0]:
                continue
            started = time.perf_counter()
            with autocast(device, precision):
                step()
            synchronise(device)
            times.append(time.perf_counter() - started)
    return {precision: batch_size / median(times[1:] or times) for precision, times in seconds.items()}
