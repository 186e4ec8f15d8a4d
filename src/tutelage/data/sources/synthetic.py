"""Synthetic images, for a model whose own images are not at hand: good for shapes and speed, not for quality."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tutelage.data.sources.base import ImageSet

NAME = "synthetic images"
SIDE = 256


class Synthetic(ImageSet):
    """Unlabelled noise at many scales, as natural images have it: a pure function of each image's number."""

    def __init__(self, size: int) -> None:
        super().__init__(NAME, NAME, [f"synthetic-{number}" for number in range(size)])

    def image(self, index: int) -> Image.Image:
        """256 x 256 pixels, RGB."""
        rng = np.random.default_rng(index)
        total = np.zeros((SIDE, SIDE, 3))
        for side in (2, 4, 8, 16, 32, 64, 128, 256):
            noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            total += np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) / side
        total -= total.min()
        return Image.fromarray((255 * total / total.max()).astype(np.uint8))
