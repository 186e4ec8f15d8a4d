"""The handwritten digits that scikit-learn contains: 1,797 grey images of 8x8 pixels in ten classes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import ImageSet


class Digits(ImageSet):
    """The digits as RGB."""

    decoded = True

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        ids = [f"digit-{i:04d}" for i in range(len(pixels))]
        super().__init__("digits", "digits", ids, [str(i) for i in range(10)], labels)
        self._pixels = pixels

    def image(self, index: int) -> Image.Image:
        """One digit, 8x8 RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")


def parts(where: str) -> tuple[str, ...]:
    """The digits have no parts."""
    if where:
        raise TutelageError(f"data source 'digits:{where}': the digits need no place; write 'digits' alone")
    return ()


def load(where: str, part: str | None) -> Digits:
    """All digits."""
    from sklearn.datasets import load_digits

    if part:
        raise TutelageError(f"data source 'digits#{part}': the digits have no parts; write 'digits' alone")
    bunch = load_digits()
    return Digits(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)
