"""A copy of a network for inference only: the same outputs for less work."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from tutelage.core.runtime import Precision
from tutelage.data.input_spec import InputSpec
from tutelage.models.source import with_channels_last

CAST_BY_AUTOCAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
AGREE = 1e-3  # of the logits' largest, between a network and its folded copy in fp32


def for_inference(
    module: nn.Module, spec: InputSpec, device: torch.device, precision: Precision
) -> nn.Module:
    """Fold BatchNorm into the convolutions before it, and cast weights to bf16 once and not at each call.

    The network itself is not changed. It is returned where nothing can be gained.

    Args:
        module: in eval mode on `device`.
        spec: input of the network.
        device: where it runs.
        precision: with bf16, the copy has to be run under autocast.
    """
    ready = _folded(module, spec, device)
    if precision == "fp32":
        return ready
    ready = copy.deepcopy(module) if ready is module else ready
    for layer in ready.modules():
        if isinstance(layer, CAST_BY_AUTOCAST):
            layer.to(torch.bfloat16)
    return ready


def _folded(module: nn.Module, spec: InputSpec, device: torch.device) -> nn.Module:
    """A folded copy if its outputs are the same: two neighbouring layers are not always called one after the other."""
    folded = copy.deepcopy(module)
    if not _fold(folded):
        return module
    with_channels_last(folded)
    probe = _probe(spec, device)
    with torch.no_grad():
        try:
            answer, wanted = folded(probe), module(probe)
        except (AttributeError, TypeError, RuntimeError):  # its forward needs a layer that was folded
            return module
    same = (answer - wanted).abs().max() <= AGREE * wanted.abs().max()
    return folded if same else module


def _probe(spec: InputSpec, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, spec.height, spec.width, generator=generator)
    return images.to(device, memory_format=torch.channels_last)


def _fold(module: nn.Module) -> int:
    """Fold each BatchNorm that follows a convolution among the children of one module; return how many."""
    count = 0
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (_, layer), (name, norm) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and _can_fold(norm, layer):
                assert isinstance(norm, _BatchNorm)
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None
                assert variance is not None
                layer.weight, layer.bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias
                )
                setattr(parent, name, _what_is_left(norm))
                count += 1
    return count


def _can_fold(norm: nn.Module, layer: nn.Conv2d) -> bool:
    return (
        isinstance(norm, _BatchNorm)
        and norm.num_features == layer.out_channels
        and norm.running_mean is not None
    )


def _what_is_left(norm: nn.Module) -> nn.Module:
    """timm's BatchNormAct2d holds the activation that comes after it."""
    return nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
