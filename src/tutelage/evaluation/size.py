"""Size of a network: bytes, parameters, multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def size_mb(module: nn.Module) -> float:
    """Parameters and buffers as they lie in memory, in MiB (2^20 bytes)."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def params_m(module: nn.Module) -> float:
    """Parameters in millions; shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def gmacs(module: nn.Module, height: int, width: int) -> float:
    """Multiply-accumulates of one image in 10^9: convolutions and matrix products, counted by PyTorch.

    Args:
        module: a classifier of (1, 3, height, width); it is run once.
        height: pixels.
        width: pixels.
    """
    parameter = next(module.parameters())
    image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    training = module.training
    module.eval()
    # the counter knows attention's products only where they are not fused into one kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(image)
    module.train(training)
    return counter.get_total_flops() / 2 / 1e9
