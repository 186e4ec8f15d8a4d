"""The handwritten digits that scikit-learn contains: 1,797 grey images of 8x8 pixels in ten classes.

``digits`` is all of them; ``digits#teacher`` is every third one, and ``digits#student`` has the others.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import ImageSet


class Digits(ImageSet):
    """Some of the digits, as RGB."""

    decoded = True

    def __init__(self, name: str, pixels: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> None:
        ids = [f"digit-{i:04d}" for i in numbers]
        super().__init__(name, name, ids, [str(i) for i in range(10)], labels[numbers])
        self._pixels = pixels[numbers]

    def place(self, index: int) -> str:
        """The id, whichever of the digits are in the set."""
        return self.ids[index]

    def image(self, index: int) -> Image.Image:
        """One digit, 8x8 RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")


def parts(where: str) -> tuple[str, ...]:
    """The digits have no parts that are for training, model selection or evaluation."""
    if where:
        raise TutelageError(f"data source 'digits:{where}': the digits need no place; write 'digits' alone")
    return ()


def load(where: str, part: str | None) -> Digits:
    """All digits, or those of ``teacher`` or ``student``."""
    from sklearn.datasets import load_digits

    if part not in (None, "teacher", "student"):
        raise TutelageError(
            f"data source 'digits#{part}': the digits have the parts teacher and student; write digits#student, or "
            "'digits' for all"
        )
    bunch = load_digits()
    numbers = np.arange(len(bunch.target))
    if part is not None:
        numbers = numbers[(numbers % 3 == 0) == (part == "teacher")]
    name = f"digits#{part}" if part else "digits"
    return Digits(name, np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target, numbers)
