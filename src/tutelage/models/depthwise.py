"""Depthwise convolutions in bf16 with fast gradients on a CPU, where PyTorch takes ten times the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

BIG_KERNEL = 5  # from this size on, oneDNN has no fast bf16 gradient of the weights
SMALL = 2500  # products of an output's pixels and an input's, up to which all of them are computed: 7x7 pixels of both


def quick_depthwise(device: torch.device) -> AbstractContextManager[object]:
    """A context in which depthwise convolutions in bf16 have fast gradients on a CPU.

    PyTorch 2.14 with oneDNN 3.12 computes two of them by slow reference code: of the input where the stride is
    not 1, and of the weights where the kernel is 5x5. In EfficientNet-Lite0 they were 60% of a training step.
    Here the first is the forward convolution of the gradient, spread out by the stride, with the flipped kernel.
    The second is computed in float32, or, for images of few pixels, by a matrix product: the same sums.

    Args:
        device: of the network; on any other than the CPU nothing changes.
    """
    return _QuickDepthwise() if device.type == "cpu" else nullcontext()


class _QuickDepthwise(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and _is_slow(*args, **(kwargs or {})):
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_slow(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> bool:
    """Whether it is a depthwise convolution with a slow gradient."""
    if groups == 1 or isinstance(padding, str) or input.ndim != 4 or not torch.is_grad_enabled():
        return False
    if _dtype(input) != torch.bfloat16:
        return False
    depthwise = groups == input.shape[1] == weight.shape[0]
    strides, pads = _pair(stride), _pair(padding)
    fits = _pair(dilation) == (1, 1) and all(p < k for p, k in zip(pads, weight.shape[2:], strict=True))
    return depthwise and fits and (strides != (1, 1) or max(weight.shape[2:]) >= BIG_KERNEL)


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    dtype = _dtype(input)
    tensors = (input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    with torch.autocast("cpu", enabled=False):
        output: Tensor = _Depthwise.apply(*tensors, _pair(stride), _pair(padding))
    return output


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wants = ctx.needs_input_grad
        to_images = _to_images(gradient, images, weight, ctx.stride, ctx.padding) if wants[0] else None
        to_weight = _to_weight(gradient, images, weight, ctx.stride, ctx.padding) if wants[1] else None
        to_bias = gradient.sum((0, 2, 3)) if wants[2] else None
        return to_images, to_weight, to_bias, None, None


def _to_images(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Transposed convolution as a convolution: zeros between the rows and columns, and the kernel flipped."""
    kernel = weight.shape[2:]
    size = [n - k + 1 + 2 * p for n, k, p in zip(images.shape[2:], kernel, padding, strict=True)]
    spread = gradient
    if stride != (1, 1):
        spread = torch.empty(
            (*gradient.shape[:2], *size), dtype=gradient.dtype, memory_format=torch.channels_last
        ).zero_()
        spread[:, :, :: stride[0], :: stride[1]] = gradient
    around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    return F.conv2d(spread, weight.flip(2, 3), None, 1, around, groups=len(weight))


def _to_weight(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    big = max(weight.shape[2:]) >= BIG_KERNEL
    if big and gradient[0, 0].numel() * images[0, 0].numel() <= SMALL:
        return _by_pixels(gradient, images, weight, stride, padding)
    dtype = torch.float32 if big else weight.dtype
    found = torch.ops.aten.convolution_backward(
        gradient.to(dtype),
        images.to(dtype),
        weight.to(dtype),
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        (False, True, False),
    )
    wanted: Tensor = found[1].to(weight.dtype)
    return wanted


def _by_pixels(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Multiply each pixel of the output with each of the input, over all images, and add those of one kernel place."""
    products = torch.bmm(gradient.permute(1, 2, 3, 0).flatten(1, 2), images.permute(1, 0, 2, 3).flatten(2))
    places = _places(gradient.shape[2:], images.shape[2:], weight.shape[2:], stride, padding)
    found: Tensor = products.flatten(1).float() @ places
    return found.view(weight.shape).to(weight.dtype)


@lru_cache(maxsize=64)
def _places(
    out: torch.Size, into: torch.Size, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Which place of the kernel joins a pixel of the output to one of the input.

    Returns:
        float32 (output pixels * input pixels, places of the kernel) of ones and zeros.
    """
    joined = []
    for n, m, k, s, p in zip(out, into, kernel, stride, padding, strict=True):
        place = torch.arange(m) - torch.arange(n)[:, None] * s + p  # (n, m)
        joined.append((place[:, :, None] == torch.arange(k)).float())  # (n, m, k)
    return torch.einsum("amk,bnl->abmnkl", *joined).reshape(-1, math.prod(kernel))


def _dtype(images: Tensor) -> torch.dtype:
    """The type in which a convolution computes."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
