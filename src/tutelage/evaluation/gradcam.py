"""Where in an image a classifier finds its class: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.models.features import Layer, run_with_features
from tutelage.models.source import Model

SIDE = 128  # pixels of an overlay
LEAST = 4  # places of a layer's output in each direction
DEEPEST = 4  # layers, from the last one, that are tried
DARKEST = 0.2  # brightness where a class is found least


def heat_maps(model: Model, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute for each image how much the regions of a late layer add to the class that a model predicts.

    The layer is the last one of timm's `feature_info` whose output has at least 4 x 4 places: of most convolutional
    networks their last stage. Of a transformer it is one before the last block, since that block's own tokens of
    patches may not enter the logits at all.

    Args:
        model: the network, in eval mode.
        images: (B, 3, H, W), normalised, on its device.

    Returns:
        (B, h, w) float32 from 0 to 1, and the predicted classes (B,) int64.

    Raises:
        TutelageError: the network names no layers, or the outputs of its last layers are no grids.
    """
    for layer in range(-1, -DEEPEST - 1, -1):
        features, logits = _features(model, images, layer)
        if not (layer == -1 and features.ndim == 3) and _grid(model, features) is not None:
            break
    else:
        raise TutelageError(f"{model.name}: none of its last {DEEPEST} layers gives a grid of 4 x 4 places")
    classes = logits.argmax(1)
    score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    places, slopes = _grid(model, features.detach()), _grid(model, gradient)
    assert places is not None
    assert slopes is not None
    heat = (slopes.mean((2, 3), keepdim=True) * places).sum(1).clamp_min(0)
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return heat.float().cpu().numpy(), classes.cpu().numpy()


def _features(model: Model, images: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        # the graph begins at the images, also where the parameters are frozen
        logits, found = run_with_features(
            model.module, model.module, images.clone().requires_grad_(), [layer]
        )
    return found[layer], logits


def _grid(model: Model, features: Tensor) -> Tensor | None:
    """Features as (B, C, h, w): tokens of patches are put back into their places. None where there are too few."""
    if features.ndim == 3:
        prefix = int(getattr(model.module, "num_prefix_tokens", 0) or 0)
        tokens = features[:, prefix:].transpose(1, 2)
        height = round(math.sqrt(tokens.shape[2] * model.input_spec.height / model.input_spec.width))
        if not height or tokens.shape[2] % height:
            return None
        features = tokens.unflatten(2, (height, -1))
    return features if features.ndim == 4 and min(features.shape[2:]) >= LEAST else None


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Darken an image where a class is not found.

    Args:
        pixels: uint8 (H, W, 3).
        heat: (h, w) from 0 to 1.

    Returns:
        uint8, (128, 128, 3).
    """
    size = (SIDE, SIDE)
    small = pixels.shape[0] < SIDE
    image = Image.fromarray(pixels).resize(
        size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    )
    light = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    shade = DARKEST + (1 - DARKEST) * np.asarray(light).clip(0, 1)
    return np.rint(np.asarray(image) * shade[..., None]).astype(np.uint8)
