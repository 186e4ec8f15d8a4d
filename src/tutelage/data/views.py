"""Views: augmented crops that are a pure function of (image, seed), rendered for any model's input."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from tutelage.core.recipe import ViewRecipe
from tutelage.data.input_spec import FILTERS, InputSpec, eval_pixels

BLUR_SIGMA = (0.1 / 224, 2.0 / 224)  # of the crop's width; SimCLR's (Chen 2020) in pixels of a 224 crop
CUTOUT_SIDE = (0.2, 0.5)  # of the crop's sides; DeVries 2017 takes half on CIFAR-10, a quarter on CIFAR-100


def view_seed(base_seed: int, sample_id: str, view_index: int) -> int:
    """The seed of one view of one image: a hash, so that it depends on no order, process or batch.

    Args:
        base_seed: of the run.
        sample_id: id of the image in its source.
        view_index: number of the view, such as the epoch.

    Returns:
        0 to 2**63 - 1.
    """
    text = f"{base_seed}|{view_index}|{sample_id}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class View:
    """One augmented crop. All lengths are relative, so that it shows the same at every resolution.

    Attributes:
        box: left, top, right, bottom of the crop, in 0..1 of the image's sides.
        flip: mirrored left to right.
        angle: counter-clockwise rotation in degrees about the crop's centre.
        blur: sigma of a Gaussian, in widths of the crop; 0: none.
        greyscale: without colour.
        colour: factors of brightness, contrast and saturation, applied in this order; None: none.
        cutout: left, top, right, bottom of a square filled with the model's mean, in 0..1 of the crop.
    """

    box: tuple[float, float, float, float]
    flip: bool = False
    angle: float = 0.0
    blur: float = 0.0
    greyscale: bool = False
    colour: tuple[float, float, float] | None = None
    cutout: tuple[float, float, float, float] | None = None

    def render(self, image: Image.Image, spec: InputSpec) -> torch.Tensor:
        """The view at the resolution of one model.

        Args:
            image: the whole RGB image.
            spec: gives resolution, interpolation and the mean that fills the cutout.

        Returns:
            uint8 (3, height, width), channels last in memory.
        """
        return torch.from_numpy(self.pixels(image, spec)).permute(2, 0, 1)

    def pixels(self, image: Image.Image, spec: InputSpec) -> np.ndarray:
        """As `render`, but a NumPy array of uint8 (height, width, 3)."""
        crop = self._cropped(image, spec)
        if self.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour:
            crop = _coloured(crop, self.colour)
        if self.greyscale:
            crop = crop.convert("L").convert("RGB")
        if self.blur:
            crop = crop.filter(ImageFilter.GaussianBlur(self.blur * spec.width))
        pixels = np.array(crop)
        if self.cutout:
            pixels[_slices(self.cutout, spec)] = [round(255 * value) for value in spec.mean]
        return pixels

    def _cropped(self, image: Image.Image, spec: InputSpec) -> Image.Image:
        """Crop, rotate and resize. Pillow's resize smooths by area when it shrinks."""
        width, height = image.size
        left, top, right, bottom = self.box
        box = (left * width, top * height, right * width, bottom * height)
        size, filter_ = (spec.width, spec.height), FILTERS[spec.interpolation]
        if not self.angle:
            return image.resize(size, filter_, box=box)
        grow = _growth(self.angle)
        image, box = _grown(image, box, grow)
        wide = (math.ceil(size[0] * grow), math.ceil(size[1] * grow))
        turned = image.resize(wide, filter_, box=box).rotate(self.angle, Image.Resampling.BICUBIC)
        left, top = (wide[0] - size[0]) // 2, (wide[1] - size[1]) // 2
        return turned.crop((left, top, left + size[0], top + size[1]))


class ViewPolicy:
    """Draws views with the settings of a recipe."""

    def __init__(self, recipe: ViewRecipe) -> None:
        self.recipe = recipe

    def draw(self, size: tuple[int, int], seed: int) -> View:
        """Draw one view.

        Each choice has its own random number, so that switching one augmentation on or off leaves the
        others of the same seed as they are.

        Args:
            size: (width, height) of the image in pixels; only their ratio matters.
            seed: from `view_seed`.
        """
        recipe = self.recipe
        u = _uniforms(seed)
        return View(
            box=_crop_box(size, recipe, u[0], u[1], u[2], u[3]),
            flip=u[4] < recipe.flip,
            angle=recipe.rotation * (2 * u[5] - 1),
            blur=_between(BLUR_SIGMA, u[7]) if u[6] < recipe.blur else 0.0,
            greyscale=u[8] < recipe.greyscale,
            colour=_colour_factors(recipe.colour, u[9], u[10], u[11]) if recipe.colour else None,
            cutout=_cutout_box(u[13], u[14], u[15]) if u[12] < recipe.cutout else None,
        )


def eval_view(image: Image.Image, spec: InputSpec) -> torch.Tensor:
    """timm's evaluation transform (resize by ``crop_pct``, then crop the centre): uint8 (3, height, width)."""
    return torch.from_numpy(eval_pixels(image, spec).copy()).permute(2, 0, 1)


def _uniforms(seed: int) -> list[float]:
    """Sixteen numbers in 0..1 (1 excluded) by hashing the seed: far cheaper than starting a generator."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), person=b"tutelage-view").digest()
    return [value / 2**32 for value in np.frombuffer(digest, "<u4").tolist()]


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _crop_box(
    size: tuple[int, int], recipe: ViewRecipe, u_area: float, u_ratio: float, u_x: float, u_y: float
) -> tuple[float, float, float, float]:
    """A random resized crop (Szegedy et al. 2015): uniform area, log-uniform ratio among those that fit inside.

    The ratio is kept on every image, and the area gives way: where no crop of the drawn area has a ratio within
    `crop_ratio` and fits inside (100% of a 16:9 photograph), the largest crop that does is taken, at a random
    place. Among the crops of such a ratio it is the nearest to the drawn area. torchvision also falls back to
    the largest crop, but at the centre, and only after ten further draws, which make the mean area smaller.
    """
    if recipe.crop_scale == (1.0, 1.0):
        return (0.0, 0.0, 1.0, 1.0)
    aspect = size[0] / size[1]
    least, most = recipe.crop_ratio
    area = min(_between(recipe.crop_scale, u_area), most / aspect, aspect / least)
    low = max(least, area * aspect)
    high = min(most, aspect / area)
    ratio = math.exp(_between((math.log(low), math.log(high)), u_ratio)) if low < high else min(low, high)
    width = min(1.0, math.sqrt(area * ratio / aspect))
    height = min(1.0, math.sqrt(area * aspect / ratio))
    left, top = (1 - width) * u_x, (1 - height) * u_y
    return (left, top, min(1.0, left + width), min(1.0, top + height))


def _colour_factors(strength: float, *u: float) -> tuple[float, float, float]:
    brightness, contrast, saturation = (1 + strength * (2 * value - 1) for value in u)
    return brightness, contrast, saturation


def _cutout_box(u_side: float, u_x: float, u_y: float) -> tuple[float, float, float, float]:
    side = _between(CUTOUT_SIDE, u_side)
    left, top = (1 - side) * u_x, (1 - side) * u_y
    return (left, top, left + side, top + side)


def _coloured(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, factor in zip(enhancers, factors, strict=True):
        image = enhancer(image).enhance(factor)
    return image


def _slices(box: tuple[float, float, float, float], spec: InputSpec) -> tuple[slice, slice]:
    left, top, right, bottom = box
    return (
        slice(round(top * spec.height), round(bottom * spec.height)),
        slice(round(left * spec.width), round(right * spec.width)),
    )


def _growth(angle: float) -> float:
    """The factor by which a square has to be enlarged to contain itself rotated by `angle` degrees."""
    turn = math.radians(angle)
    return abs(math.cos(turn)) + abs(math.sin(turn))


def _grown(
    image: Image.Image, box: tuple[float, float, float, float], grow: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The box enlarged around its centre, and an image that covers it: the image is mirrored at its edges."""
    left, top, right, bottom = box
    dx, dy = (right - left) * (grow - 1) / 2, (bottom - top) * (grow - 1) / 2
    left, top, right, bottom = left - dx, top - dy, right + dx, bottom + dy
    before_x, before_y = max(0, math.ceil(-left)), max(0, math.ceil(-top))
    after_x, after_y = max(0, math.ceil(right - image.width)), max(0, math.ceil(bottom - image.height))
    if before_x or before_y or after_x or after_y:
        margins = ((before_y, after_y), (before_x, after_x), (0, 0))
        image = Image.fromarray(np.pad(np.asarray(image), margins, mode="symmetric"))
    return image, (left + before_x, top + before_y, right + before_x, bottom + before_y)
