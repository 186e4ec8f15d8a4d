"""What loaders make of the images of a batch: evaluation crops and views, for each model that gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tutelage.core.runtime import gpu_in_use
from tutelage.data.device_views import Frames, Parts, can_render
from tutelage.data.input_spec import IdInput, InputSpec, eval_pixels
from tutelage.data.kept import Batch
from tutelage.data.subset import Subset
from tutelage.data.views import View, ViewPolicy, view_seed


@dataclass(frozen=True)
class Crops:
    """Evaluation crops of a subset."""

    subset: Subset
    specs: Sequence[InputSpec]

    def frames(self, count: int) -> Frames:
        """A place for what is rendered of a batch."""
        return _Frames(self.specs, count)

    def render(self, position: int, view: int) -> Any:
        """What `frames` takes: one image for each spec, uint8 (H, W, 3); raises `UnreadableImage`."""
        image = self.subset.image(position)
        return self._for_each(position, lambda spec: eval_pixels(image, spec))

    def _for_each(self, position: int, show: Callable[[InputSpec], np.ndarray]) -> list[np.ndarray]:
        """What `show` gives for each spec; the image's name for a model that looks its answers up."""
        return [
            spec.pixels(self.subset.full_name(position)) if isinstance(spec, IdInput) else show(spec)
            for spec in self.specs
        ]


@dataclass(frozen=True)
class Views(Crops):
    """Views of a subset."""

    policy: ViewPolicy
    seed: int

    def drawn(self, size: tuple[int, int], position: int, view: int) -> View:
        """A view of an image of this size (width, height)."""
        return self.policy.draw(size, view_seed(self.seed, self.subset.id(position), view))

    def render(self, position: int, view: int) -> Any:
        """One view for each spec, uint8 (H, W, 3); raises `UnreadableImage`."""
        image = self.subset.image(position)
        drawn = self.drawn(image.size, position, view)
        rendered: dict[tuple[object, ...], np.ndarray] = {}  # models with the same input share one rendering

        def show(spec: InputSpec) -> np.ndarray:
            look = (spec.height, spec.width, spec.interpolation, spec.mean if drawn.cutout else None)
            if look not in rendered:
                rendered[look] = drawn.pixels(image, spec)
            return rendered[look]

        return self._for_each(position, show)


@dataclass(frozen=True)
class HandedOn(Views):
    """Views of a subset that a device renders."""

    def frames(self, count: int) -> Frames:
        """A place for images and their views."""
        return Parts(self.specs)

    def render(self, position: int, view: int) -> Any:
        """The pixels of an image, and its view; raises `UnreadableImage`."""
        pixels = self.subset.pixels(position)
        return pixels, self.drawn((pixels.shape[1], pixels.shape[0]), position, view)


class _Frames:
    """The images of a batch for each spec, in their final memory: without collating or copies."""

    def __init__(self, specs: Sequence[InputSpec], count: int) -> None:
        self._images = [torch.empty((count, s.height, s.width, 3), dtype=torch.uint8) for s in specs]
        self._arrays = [tensor.numpy() for tensor in self._images]

    def add(self, place: int, rendered: Any) -> None:
        """Take the next image: one array for each spec."""
        for array, pixels in zip(self._arrays, rendered, strict=True):
            array[place] = pixels

    def batch(self, count: int) -> Batch:
        """What the batch has of so many images."""
        return {"images": [tensor[:count].permute(0, 3, 1, 2) for tensor in self._images]}


def views_of(subset: Subset, specs: Sequence[InputSpec], policy: ViewPolicy, seed: int) -> Views:
    """Views that the GPU renders where the run uses one and the images are small, such as those of a packed store."""
    handed = gpu_in_use() is not None and subset.images.small and can_render(specs, policy.recipe.rotation)
    return (HandedOn if handed else Views)(subset, specs, policy, seed)
