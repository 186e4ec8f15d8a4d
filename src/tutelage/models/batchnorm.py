"""BatchNorm statistics: measured again after weights were averaged, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading, eval_loader, normalise
from tutelage.data.splits import Subset, sample

IMAGES = 2048
BATCH = 128
SCREENED = 2 * BATCH  # images, where many states are compared before the best are measured on all


def has_batchnorm(module: nn.Module) -> bool:
    """Whether a network has running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


def moved(module: nn.Module, start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float | None:
    """Measure how far the running means of a state are from the start's, in the start's standard deviations.

    The root mean square over a layer's channels, averaged over the layers; None where there is no BatchNorm.
    """
    layers = [
        name for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    if not layers:
        return None
    distances = [
        (now[f"{name}.running_mean"] - start[f"{name}.running_mean"]).norm()
        / start[f"{name}.running_var"].sum().sqrt()
        for name in layers
    ]
    return float(torch.stack(distances).mean())


def decode_sample(subset: Subset, spec: InputSpec, loading: Loading) -> list[Tensor]:
    """Decode the images that statistics are measured on, once for all states of a network.

    Args:
        subset: of which at most 2,048 images are taken, un-augmented and spread over all classes.
        spec: how the network takes its images.
        loading: workers, and the counter of images that cannot be decoded; these are left out.

    Returns:
        Batches of uint8 (B, 3, H, W), mixed over the classes, since a batch of few classes varies too little. All
        have nearly the same size: a small last batch would be normalised by poor statistics of its own.
    """
    some = sample(subset, IMAGES)
    mixed = replace(some, indices=np.random.default_rng(0).permutation(some.indices))
    loader = eval_loader(mixed, [spec], BATCH, loading.workers, bad=loading.bad)
    images = [batch["images"][0] for batch in loader]
    if not images:
        return []
    found = torch.cat(images)
    return list(found.tensor_split(math.ceil(len(found) / BATCH)))


@torch.no_grad()
def recalibrate(
    module: nn.Module,
    spec: InputSpec,
    batches: Sequence[Tensor],
    device: torch.device,
    on_batch: Callable[[int], object] = lambda images: None,
) -> None:
    """Replace all running means and variances by those over all images, each counted once.

    Averaged weights have other activations than either of their sources (Izmailov et al. 2018, "Averaging
    weights leads to wider optima"). Every process measures the same images, so all end with the same state.

    Args:
        module: is in eval mode afterwards.
        spec: mean and std of its images.
        batches: of `decode_sample`. With fewer than two images nothing can be measured, and nothing is changed.
        device: where the module is.
        on_batch: called with the number of images of each batch that is done.
    """
    if sum(map(len, batches)) < 2:
        return
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    moments = {layer: _Moments() for layer in layers}
    handles = [layer.register_forward_pre_hook(moments[layer].add) for layer in layers]
    module.eval()
    for layer in layers:
        layer.train()  # so that the layers after it see normalised activations
    try:
        for batch in batches:
            module(normalise(batch, spec, device))
            on_batch(len(batch))
    finally:
        for handle in handles:
            handle.remove()
        module.eval()
    for layer, found in moments.items():
        if found.count > 1:  # a layer may not be part of the forward pass
            layer.running_mean.copy_(found.mean)  # type: ignore[union-attr]  # it tracks running statistics
            layer.running_var.copy_(found.squares / (found.count - 1))  # type: ignore[union-attr]


class _Moments:
    """Count, mean and sum of squared deviations of each channel, over batches of any sizes (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.squares = torch.zeros(1, dtype=torch.float64)

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in a layer's input (B, C, ...)."""
        values = inputs[0].movedim(1, -1).flatten(0, -2).float()
        count, mean = len(values), values.mean(0)
        # in two passes, 3 to 10 times as fast on a CPU as torch.var_mean, and as exact to 4e-7
        var = (values - mean).square_().mean(0)
        var, mean = torch.stack([var, mean]).double().cpu()
        total, shift = self.count + count, mean - self.mean
        self.mean = self.mean + shift * count / total
        self.squares = self.squares + var * count + shift.square() * self.count * count / total
        self.count = total
