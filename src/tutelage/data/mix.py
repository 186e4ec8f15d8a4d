"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): one mix for the images of all models in a batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tutelage.core.recipe import ViewRecipe
from tutelage.core.runtime import to_device


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed with one another.

    Attributes:
        kind: ``mixup`` blends two images, ``cutmix`` pastes a box of the second into the first.
        lam: share of the first image, 0 to 1.
        permutation: int64 (B,), the partner of each image.
        box: left, top, right, bottom of the pasted box, in 0..1 of the image; cutmix only.
    """

    kind: Literal["mixup", "cutmix"]
    lam: float
    permutation: torch.Tensor
    box: tuple[float, float, float, float] | None = None

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Mix (B, C, H, W) images of any resolution. uint8 stays uint8 (rounded); the input is not changed."""
        partners = images[to_device(self.permutation, images.device)]
        if self.box is None:
            blend = torch.lerp(partners.float(), images.float(), self.lam)
            return blend.round().to(images.dtype) if images.dtype == torch.uint8 else blend.to(images.dtype)
        height, width = images.shape[-2:]
        left, top, right, bottom = self.box
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        mixed = images.clone()
        mixed[..., rows, columns] = partners[..., rows, columns]
        return mixed

    def targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Mix (B, C) one-hot or soft targets by the shares of the images."""
        return torch.lerp(targets[to_device(self.permutation, targets.device)], targets, self.lam)


def draw_mix(recipe: ViewRecipe, batch_size: int, seed: int) -> Mix | None:
    """Draw the mix of one batch; None where it is not mixed.

    Partners are neighbours in the batch, whose order is random already. So a process that holds an even slice of a
    batch mixes it as one process does that holds all of it.

    Args:
        recipe: gives the alphas and the probability of mixing.
        batch_size: images in this process's slice.
        seed: of the batch, the same in all processes.
    """
    if not (recipe.mixup or recipe.cutmix) or batch_size < 2:
        return None
    rng = np.random.Generator(np.random.Philox(_key(seed)))
    if rng.random() >= recipe.mix_probability:
        return None
    cut = bool(recipe.cutmix) and (not recipe.mixup or rng.random() < 0.5)
    alpha = recipe.cutmix if cut else recipe.mixup
    lam = float(rng.beta(alpha, alpha))
    permutation = _neighbours(batch_size)
    if not cut:
        return Mix("mixup", lam, permutation)
    box = _pasted(lam, *rng.random(2).tolist())
    left, top, right, bottom = box
    return Mix("cutmix", 1 - (right - left) * (bottom - top), permutation, box)


def _key(seed: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(str(seed).encode(), digest_size=16, person=b"mix").digest(), "little"
    )


def _neighbours(size: int) -> torch.Tensor:
    """Partners 1 0 3 2 ...; in an odd batch the last image is mixed with the first of the last pair."""
    partners = torch.arange(size) ^ 1
    if size % 2:
        partners[-1] = size - 3 if size > 2 else 0
    return partners


def _pasted(lam: float, u_x: float, u_y: float) -> tuple[float, float, float, float]:
    """A box of area 1 - lam around a uniformly drawn centre, clipped at the edges of the image."""
    half = math.sqrt(1 - lam) / 2
    return max(0.0, u_x - half), max(0.0, u_y - half), min(1.0, u_x + half), min(1.0, u_y + half)
