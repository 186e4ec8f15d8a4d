"""Accuracy on corrupted images (Hendrycks & Dietterich 2019, "Benchmarking neural network robustness").

The corruptions are Pillow's operations, which torchvision calls too, with the severities of ImageNet-C where it has the
same kind. They are not ImageNet-C: its fog, frost, snow and motion need OpenCV and pictures of their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from tutelage.data.sources.base import ImageSet
from tutelage.data.subset import Subset
from tutelage.data.views import view_seed
from tutelage.evaluation.paired import pooled

SIDE = 256  # pixels of the shorter side to which larger images are resized before, as for ImageNet-C
REFERENCE = 224  # pixels for which the radii of the blur are
SEVERITIES = 5


def _noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64) / 255
    noisy = (pixels + rng.normal(0, sigma, pixels.shape)).clip(0, 1)
    return Image.fromarray(np.rint(255 * noisy).astype(np.uint8))


def _blur(image: Image.Image, radius: float, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius * min(image.size) / REFERENCE))


def _brightness(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _colour(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _pixelate(image: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _jpeg(image: Image.Image, quality: float, rng: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        change: of an image, a strength and a generator makes the corrupted image.
        strengths: of severities 1 to 5.
        meaning: of the strength.
    """

    change: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    strengths: tuple[float, float, float, float, float]
    meaning: str


CORRUPTIONS = {
    "noise": Corruption(_noise, (0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation, of a white of 1"),
    "blur": Corruption(_blur, (1, 2, 3, 4, 6), "radius of the Gaussian in pixels, of an image of 224"),
    "brighter": Corruption(_brightness, (1.2, 1.4, 1.6, 1.8, 2.0), "factor of all shades"),
    "darker": Corruption(_brightness, (0.8, 0.65, 0.5, 0.35, 0.2), "factor of all shades"),
    "low contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), "factor of the distance from the mean"),
    "pale colours": Corruption(_colour, (0.6, 0.45, 0.3, 0.15, 0.0), "factor of the distance from grey"),
    "coarse pixels": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), "scale"),
    "JPEG": Corruption(_jpeg, (25, 18, 15, 10, 7), "quality"),
}


class Corrupted(ImageSet):
    """Images with one kind of corruption, each in a severity from 1 to 5 that its id and the seed decide."""

    def __init__(self, images: ImageSet, kind: str, seed: int) -> None:
        super().__init__(images.name, images.origin, images.ids, images.classes, images.labels)
        self.max_pixels = images.max_pixels
        self._images, self._kind, self._seed = images, kind, seed

    def image(self, index: int) -> Image.Image:
        """Decode an image, resize it to 256 pixels where it is larger, and corrupt it."""
        image = self._images.image(index)
        if (short := min(image.size)) > SIDE:
            size = round(image.width * SIDE / short), round(image.height * SIDE / short)
            image = image.resize(size, Image.Resampling.BICUBIC)
        number = list(CORRUPTIONS).index(self._kind)
        rng = np.random.default_rng(view_seed(self._seed, self.ids[index], number))
        corruption = CORRUPTIONS[self._kind]
        return corruption.change(image, corruption.strengths[rng.integers(SEVERITIES)], rng)


def corrupted(subset: Subset, kind: str, seed: int) -> Subset:
    """Return the same images with one of the `CORRUPTIONS`; each model and process gets the same pixels."""
    return replace(subset, images=Corrupted(subset.images, kind, seed))


def robustness(right: Mapping[str, np.ndarray], new: str, olds: Sequence[str]) -> dict[str, Any]:
    """Summarise which corrupted images each model classifies correctly.

    Args:
        right: for each model (corruptions, images) bool, in the order of `CORRUPTIONS`.
        new: the model that is compared.
        olds: the models that it is compared with.

    Returns:
        `kinds`, top-1 in percent by model and kind (`top1`), the mean over kinds (`mean`), and `pairs`: the difference
        of the means in points, with an interval for which images are resampled, each with all its corruptions.
    """
    return {
        "kinds": list(CORRUPTIONS),
        "top1": {model: (100 * one.mean(1)).tolist() for model, one in right.items()},
        "mean": {model: 100 * float(one.mean()) for model, one in right.items()},
        "pairs": [
            {"new": new, "old": old}
            | {key: value for key, value in pooled(right[new], right[old]).items() if key != "sd"}
            for old in olds
        ],
    }
