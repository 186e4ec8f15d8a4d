"""Pictures in the page: data URIs, the images that changed, and the views as the models saw them."""

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
SMALL = 48  # a picture no larger is kept as it is, so that its pixels are seen


@dataclass(frozen=True)
class Picture:
    """A picture for an ``img`` element. `pixelated` asks the browser to show the pixels of a small one."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class SheetRow:
    """One image as it is on the disk, and its views: a tuple of pictures for each draw, one for each model."""

    name: str
    label: str
    original: Picture
    views: Sequence[tuple[Picture, ...]]


def picture(image: Image.Image, side: int = SIDE) -> Picture:
    """A thumbnail: JPEG, or PNG where the image is small."""
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
    """Views of some training images, as each model is given them; mixed where the recipe mixes.

    Args:
        subset: the training part.
        recipe: of the views and the seed.
        specs: one for each model.
        images: how many, spread over the part; those that cannot be decoded are left out.
        draws: views of each.
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
    """One view of every image for every model: uint8 (images, height, width, 3) each."""
    policy = ViewPolicy(recipe.view)
    seeds = {position: view_seed(recipe.train.seed, subset.id(position), draw) for position in images}
    views = {position: policy.draw(images[position].size, seeds[position]) for position in images}
    mix = draw_mix(recipe.view, len(images), draw)
    batches = []
    for spec in specs:
        batch = torch.stack([views[position].render(image, spec) for position, image in images.items()])
        batches.append((mix.images(batch) if mix else batch).permute(0, 2, 3, 1).numpy())
    return batches
