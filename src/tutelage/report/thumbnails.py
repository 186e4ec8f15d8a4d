"""Pictures in the page as data URIs: thumbnails of images, and views as the models get them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from tutelage.core.recipe import Recipe
from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import InputSpec
from tutelage.data.mix import draw_mix
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy, view_seed

SIDE = 128  # pixels of a thumbnail's longer side
SMALL = 48  # pictures up to this size are kept as they are, so that their pixels can be seen


@dataclass(frozen=True)
class Picture:
    """A picture for an ``img`` element. `pixelated` asks the browser to show the pixels of a small one."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class SheetRow:
    """One image, unchanged and in its views: for each draw a tuple with one picture for each model."""

    name: str
    label: str
    original: Picture
    views: Sequence[tuple[Picture, ...]]


def picture(image: Image.Image, side: int = SIDE) -> Picture:
    """Make a thumbnail: JPEG, or PNG where the image is small."""
    image = image.convert("RGB")
    small = max(image.size) <= SMALL
    if not small:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG" if small else "JPEG", quality=82, optimize=True)
    kind = "png" if small else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(uri, *image.size, small)


def contact_sheet(
    subset: Subset, recipe: Recipe, specs: Sequence[InputSpec], images: int = 6, draws: int = 4
) -> list[SheetRow]:
    """Make views of some training images as each model gets them, mixed if the recipe mixes images.

    Args:
        subset: the training images.
        recipe: has the settings of the views and the seed.
        specs: one for each model.
        images: number of images, spread over the subset; those that cannot be decoded are left out.
        draws: number of views of each image.
    """
    found = _readable(subset, np.unique(np.linspace(0, len(subset) - 1, images).astype(int)).tolist())
    batches = [_drawn(subset, found, recipe, specs, draw) for draw in range(draws)]
    return [
        SheetRow(
            name=subset.id(position),
            label=subset.classes[subset.labels[position]] if subset.labels[position] >= 0 else "",
            original=picture(image),
            views=[tuple(picture(Image.fromarray(pixels[row])) for pixels in batch) for batch in batches],
        )
        for row, (position, image) in enumerate(found.items())
    ]


def _readable(subset: Subset, positions: Sequence[int]) -> dict[int, Image.Image]:
    found = {}
    for position in positions:
        with suppress(UnreadableImage):
            found[position] = subset.image(position)
    return found


def _drawn(
    subset: Subset, images: Mapping[int, Image.Image], recipe: Recipe, specs: Sequence[InputSpec], draw: int
) -> list[np.ndarray]:
    """Return one view of every image for every model: uint8 (images, height, width, 3) each."""
    policy = ViewPolicy(recipe.view)
    seeds = {position: view_seed(recipe.train.seed, subset.id(position), draw) for position in images}
    views = {position: policy.draw(images[position].size, seeds[position]) for position in images}
    mix = draw_mix(recipe.view, len(images), draw)
    batches = []
    for spec in specs:
        batch = torch.stack([views[position].render(image, spec) for position, image in images.items()])
        batches.append((mix.images(batch) if mix else batch).permute(0, 2, 3, 1).numpy())
    return batches
