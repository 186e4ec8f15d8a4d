"""BatchNorm statistics measured anew, after weights were averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import eval_loader, normalise
from tutelage.data.splits import Subset, sample

IMAGES = 2048
BATCH = 128


def has_batchnorm(module: nn.Module) -> bool:
    """Whether there are running statistics to speak of."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


def moved(module: nn.Module, start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float | None:
    """How far the running means of a state are from the start's, in the start's standard deviations.

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


@torch.no_grad()
def recalibrate(module: nn.Module, spec: InputSpec, subset: Subset, device: torch.device) -> None:
    """Replace all running means and variances by those of (at most 2,048) un-augmented images of a part.

    Averaged weights have other activations than either of their sources (Izmailov et al. 2018, "Averaging
    weights leads to wider optima"). Every process measures the same images, so all end with the same state.
    """
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    module.eval()
    for layer in layers:
        layer.train()
    for batch in eval_loader(_mixed(subset), [spec], batch_size=BATCH, workers=0):
        module(normalise(batch["images"][0], spec, device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.eval()


def _mixed(subset: Subset) -> Subset:
    """Images of all classes in mixed order: a batch of few classes varies too little."""
    some = sample(subset, IMAGES)
    return replace(some, indices=np.random.default_rng(0).permutation(some.indices))
