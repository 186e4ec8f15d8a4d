"""Views of a whole batch, rendered on a GPU: workers decode and hand on pixels, and the device does all that follows.

Crop and resize are two batched matrix products with the weights that Pillow uses, and round as Pillow does after each
of them. What comes out is what `View.pixels` renders, up to one of 256 levels in a few values. Pillow is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tutelage.core.runtime import to_device
from tutelage.data.input_spec import IdInput, InputSpec
from tutelage.data.views import BLUR_SIGMA, View

LEVELS = 255.0
Handed = dict[str, Tensor]
# what a row of `Handed["views"]` has: the box in pixels of the part that is handed on, the part's size, that of the
# whole image, and the settings of `View`
COLUMNS = (
    *("left", "top", "right", "bottom", "width", "height", "image_width", "image_height"),
    *("flip", "blur", "greyscale", "colour", "brightness", "contrast", "saturation"),
    *("cutout", "cut_left", "cut_top", "cut_right", "cut_bottom"),
)
AT = {name: place for place, name in enumerate(COLUMNS)}
# From 13.0 on, Pillow resizes an image along its height first, where that becomes shorter by more than twice as much.
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
MOST_PADDING = 4  # times as many pixels as the images have; a batch with more of it is not handed on


def _bicubic(x: Tensor) -> Tensor:
    """Keys 1981 with a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


KERNELS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {  # half widths, and weights by distance
    "bicubic": (2.0, _bicubic),
    "bilinear": (1.0, _bilinear),
}


def can_render(specs: Sequence[InputSpec], rotation: float) -> bool:
    """Whether views for these inputs can be rendered here; rotation and other filters are left to Pillow."""
    return not rotation and all(
        spec.interpolation in KERNELS and not isinstance(spec, IdInput) for spec in specs
    )


def handed_on(pixels: np.ndarray, view: View, specs: Sequence[InputSpec]) -> tuple[np.ndarray, np.ndarray]:
    """What a view needs of an image, and its row of settings.

    Args:
        pixels: uint8 (H, W, 3), the whole image.
        view: to render.
        specs: inputs of all models.

    Returns:
        uint8 (h, w, 3), a part of the image; float64 (len(COLUMNS),).
    """
    height, width = pixels.shape[:2]
    sides = np.array((width, height, width, height))
    box = (np.array(view.box) * sides).astype(np.float32).astype(float)  # Pillow keeps it so
    left, right = _needed(box[0], box[2], width, [(spec.width, spec) for spec in specs])
    top, bottom = _needed(box[1], box[3], height, [(spec.height, spec) for spec in specs])
    row = np.zeros(len(COLUMNS))
    row[:8] = *(box - (left, top, left, top)), right - left, bottom - top, width, height
    row[8:11] = view.flip, view.blur, view.greyscale
    if view.colour:
        row[11:15] = 1, *view.colour
    if view.cutout:
        row[15:20] = 1, *view.cutout
    return pixels[top:bottom, left:right], row


class Frames(Protocol):
    """Collects what loaders make of the images of a batch."""

    def add(self, place: int, rendered: Any) -> None:
        """Take the next image, which has this place in the batch."""

    def batch(self, count: int) -> dict[str, Any]:
        """Entries of a batch of so many images."""


class Parts:
    """What a device needs of the images of a batch; a batch that is mostly padding is rendered here."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self._specs = specs
        self._drawn: list[tuple[np.ndarray, View]] = []

    def add(self, place: int, rendered: Any) -> None:
        """Take the next image with its view."""
        self._drawn.append(rendered)

    def batch(self, count: int) -> dict[str, Any]:
        """``handed``, for `render`; or ``images``, what `render` returns."""
        parts = [handed_on(pixels, view, self._specs) for pixels, view in self._drawn]
        handed = packed_batch([part[0] for part in parts], [part[1] for part in parts]) if parts else None
        if handed is not None:
            return {"handed": handed}
        drawn = [(Image.fromarray(pixels), view) for pixels, view in self._drawn]
        images = [[view.render(image, spec) for image, view in drawn] for spec in self._specs]
        return {"images": [torch.stack(one) for one in images if one]}


def packed_batch(images: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> Handed | None:
    """The parts of the images of a batch in one tensor; None where most of it would be padding.

    Returns:
        ``pixels``, uint8 (B, H, W, 3), each image at the top left; ``views``, float64 (B, len(COLUMNS)).
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    if len(images) * height * width > MOST_PADDING * sum(image.shape[0] * image.shape[1] for image in images):
        return None
    pixels = torch.empty((len(images), height, width, 3), dtype=torch.uint8)
    for target, image in zip(pixels.numpy(), images, strict=True):
        target[: image.shape[0], : image.shape[1]] = image  # what is beside it has the weight 0
    return {"pixels": pixels, "views": torch.from_numpy(np.stack(rows))}


@torch.no_grad()
def render(handed: Handed, specs: Sequence[InputSpec], device: torch.device) -> list[Tensor]:
    """Render the views of a batch for each input.

    Args:
        handed: from `packed_batch`.
        specs: inputs of all models.
        device: that computes.

    Returns:
        For each input uint8 (B, 3, height, width), channels last in memory.
    """
    rows = handed["views"].numpy()
    with torch.autocast(device.type, enabled=False):
        pixels = handed["pixels"].to(device, non_blocking=True).permute(0, 3, 1, 2).float().contiguous()
        views = handed["views"].to(device, non_blocking=True)
        done: dict[tuple[object, ...], Tensor] = {}  # models with the same input share one rendering
        for spec in specs:
            look = _look(spec)
            if look not in done:
                done[look] = _rendered(pixels, views, rows, spec)
        return [done[_look(spec)] for spec in specs]


def _down_first(rows: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Which images Pillow resizes along their height first, bool (B,): it matters, since it rounds in between."""
    if not TALL_FIRST:
        return np.zeros(len(rows), bool)
    shorter = rows[:, AT["image_height"]] - spec.height
    return (shorter > 0) & (shorter > 2 * (rows[:, AT["image_width"]] - spec.width))


def _look(spec: InputSpec) -> tuple[object, ...]:
    return spec.height, spec.width, spec.interpolation, spec.mean


def _needed(start: float, end: float, length: int, outputs: list[tuple[int, InputSpec]]) -> tuple[int, int]:
    """The pixels along one side of an image, from and to, that any of the outputs of a box uses."""
    low, high = length, 0
    for size, spec in outputs:
        scale = (end - start) / size
        support = KERNELS[spec.interpolation][0] * max(scale, 1.0)
        low = min(low, math.floor(start + scale / 2 - support + 0.5))
        high = max(high, math.floor(end - scale / 2 + support + 0.5))
    return max(0, low), min(length, high)


def _rendered(pixels: Tensor, views: Tensor, rows: np.ndarray, spec: InputSpec) -> Tensor:
    """One input's views (B, 3, height, width) of float images (B, 3, H, W), in the order of `View.pixels`."""

    def column(name: str) -> Tensor:
        return views[:, AT[name]].view(-1, 1, 1, 1)

    image = _resized(pixels, views, _down_first(rows, spec), spec)
    used = {name for name, place in AT.items() if rows[:, place].any()}  # known without asking the device
    if "flip" in used:
        image = torch.where(column("flip") > 0, image.flip(3), image)
    if "colour" in used:
        image = torch.where(column("colour") > 0, _coloured(image, views), image)
    if "greyscale" in used:
        image = torch.where(column("greyscale") > 0, _grey(image), image)
    if "blur" in used:
        image = _blurred(image, column("blur").flatten() * spec.width)
    if "cutout" in used:
        image = _cut_out(image, views, spec)
    return image.to(torch.uint8, memory_format=torch.channels_last)


def _resized(pixels: Tensor, views: Tensor, down_first: np.ndarray, spec: InputSpec) -> Tensor:
    """Crop and resize float images (B, 3, H, W) to (B, 3, height, width)."""
    across = _weights(views, "left", "right", "width", pixels.shape[3], spec.width, spec.interpolation)
    down = _weights(views, "top", "bottom", "height", pixels.shape[2], spec.height, spec.interpolation)
    across, down = across.transpose(1, 2)[:, None], down[:, None]
    if not down_first.any():
        return _rounded(down @ _rounded(pixels @ across))
    if down_first.all():
        return _rounded(_rounded(down @ pixels) @ across)
    image = pixels.new_empty((len(pixels), 3, spec.height, spec.width))
    for first in (True, False):
        at = to_device(torch.from_numpy(np.flatnonzero(down_first == first)), pixels.device)
        one, left, right = pixels[at], down[at], across[at]
        image[at] = _rounded(_rounded(left @ one) @ right if first else left @ _rounded(one @ right))
    return image


def _weights(
    views: Tensor, start: str, end: str, length: str, pixels: int, size: int, interpolation: str
) -> Tensor:
    """The weights of a resize along one side, float32 (B, size, pixels): Pillow's, which smooth where it shrinks."""
    support, kernel = KERNELS[interpolation]
    first, last = views[:, AT[start], None], views[:, AT[end], None]
    scale = (last - first) / size
    wide = scale.clamp(min=1.0)
    centre = first + (torch.arange(size, device=views.device) + 0.5) * scale
    low = torch.floor(centre - support * wide + 0.5).clamp(min=0)
    high = torch.minimum(torch.floor(centre + support * wide + 0.5), views[:, AT[length], None])
    place = torch.arange(pixels, device=views.device, dtype=torch.float32)
    away = (place + 0.5 - centre[:, :, None].float()) / wide[:, :, None].float()
    inside = (place >= low[:, :, None].float()) & (place < high[:, :, None].float())
    weights = kernel(away) * inside
    return weights / weights.sum(2, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, LEVELS)


def _grey(image: Tensor) -> Tensor:
    """Luma (ITU-R 601-2) of RGB, (B, 1, H, W), rounded as Pillow does, in whole numbers that float32 holds."""
    red, green, blue = image.unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536).floor_()[:, None]


def _blend(base: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `Image.blend`, which cuts the fraction off."""
    return (base + factor * (image - base)).floor_().clamp_(0, LEVELS)


def _coloured(image: Tensor, views: Tensor) -> Tensor:
    """Brightness, contrast and saturation, as `ImageEnhance` changes them."""
    brightness, contrast, saturation = (
        views[:, AT[name]].float().view(-1, 1, 1, 1) for name in ("brightness", "contrast", "saturation")
    )
    image = _blend(torch.zeros_like(image), image, brightness)
    mean = (_grey(image).double().mean((1, 2, 3)) + 0.5).floor().float().view(-1, 1, 1, 1)
    image = _blend(mean.expand_as(image), image, contrast)
    return _blend(_grey(image).expand_as(image), image, saturation)


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur, of as many pixels in each image, as three box filters along each side (Gwosdek 2011)."""
    variance = sigma**2 / 3
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = whole + part
    widest = math.ceil(BLUR_SIGMA[1] * image.shape[3]) + 1  # sigma is at least the radius of each box
    steps = torch.arange(-widest, widest + 1, device=image.device)
    inner = 1 / (2 * radius + 1)
    outer = (1 - (2 * radius.floor() + 1) * inner) / 2
    away, edge = steps.abs()[:, None], radius.floor()
    weights = torch.where(away <= edge, inner, torch.where(away == edge + 1, outer, 0.0)).float()
    blurred = image
    for axis in (3, 2):
        for _ in range(3):
            pad = (widest, widest, 0, 0) if axis == 3 else (0, 0, widest, widest)
            padded, length = F.pad(blurred, pad, mode="replicate"), image.shape[axis]
            blurred = torch.zeros_like(image)
            for step, weight in enumerate(weights):
                blurred += weight.view(-1, 1, 1, 1) * padded.narrow(axis, step, length)
            blurred = _rounded(blurred)
    return torch.where(sigma.view(-1, 1, 1, 1) > 0, blurred, image)


def _cut_out(image: Tensor, views: Tensor, spec: InputSpec) -> Tensor:
    """Fill a square with the model's mean."""

    def inside(start: str, end: str, size: int) -> Tensor:
        place = torch.arange(size, device=image.device)
        first, last = (torch.round(views[:, AT[name], None] * size) for name in (start, end))
        return (place >= first) & (place < last)

    rows = inside("cut_top", "cut_bottom", spec.height) & (views[:, AT["cutout"], None] > 0)
    square = rows[:, None, :, None] & inside("cut_left", "cut_right", spec.width)[:, None, None, :]
    fill = torch.tensor(
        [round(LEVELS * value) for value in spec.mean], device=image.device, dtype=image.dtype
    )
    return torch.where(square, fill.view(1, -1, 1, 1), image)
