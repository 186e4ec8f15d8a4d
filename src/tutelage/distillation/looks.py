"""The looks of a teacher at one view: its mirror image and further resolutions, over which its answers are averaged.

Averaging over looks makes fewer errors than one look (test-time augmentation; Krizhevsky et al. 2012, "ImageNet
classification with deep convolutional neural networks", average ten crops). All looks are of the same crop, so that
teacher and student still see one view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.core.components import TargetsRecipe
from tutelage.core.errors import TutelageError, one_line
from tutelage.data.input_spec import InputSpec
from tutelage.evaluation import resolution
from tutelage.models.heads import device_of
from tutelage.models.source import Model


@dataclass(frozen=True)
class Looks:
    """What a teacher's answer for a view is the mean over, beside the view itself.

    Attributes:
        flip: also the mirror image at each resolution.
        resolutions: further resolutions in pixels at which the view is rendered.
    """

    flip: bool = False
    resolutions: tuple[int, ...] = ()

    @classmethod
    def of(cls, targets: TargetsRecipe) -> Looks:
        """Return the looks that a recipe asks for."""
        return cls(targets.flip, targets.resolutions)

    def inputs(self, spec: InputSpec) -> list[InputSpec]:
        """Return a model's own input, and that at each further resolution."""
        return list(dict.fromkeys([spec, *(spec.at(pixels) for pixels in self.resolutions)]))

    def models(self, model: Model) -> list[Model]:
        """Return a model for each of its inputs; only networks that depend on the resolution are copied for it.

        Raises:
            TutelageError: the architecture does not work at a resolution.
        """
        depends = callable(getattr(model.module, "set_input_size", None))
        return [
            resolution.at(model, spec.height) if depends else replace(model, input_spec=spec)
            for spec in self.inputs(model.input_spec)
        ]

    def networks(self, model: Model) -> list[tuple[nn.Module, InputSpec]]:
        """Return a network and its input for each look, the mean of whose probabilities is the answer."""
        found: list[tuple[nn.Module, InputSpec]] = []
        for one in self.models(model):
            found.append((one.module, one.input_spec))
            if self.flip:
                found.append((_Mirrored(one.module), one.input_spec))
        return found

    def check(self, model: Model) -> None:
        """Run a model once at each further resolution.

        Raises:
            TutelageError: it does not work at one of them.
        """
        for spec in self.inputs(model.input_spec)[1:]:
            image = torch.zeros(1, 3, spec.height, spec.width, device=device_of(model.module))
            try:
                with torch.no_grad():
                    resolution.at(model, spec.height).module(image)
            except (TutelageError, RuntimeError, AssertionError, ValueError) as error:
                raise TutelageError(
                    f"targets.resolutions: {model.spec} does not work at {spec.height} px ({one_line(error)[:200]}); "
                    "leave this resolution out"
                ) from None


class _Mirrored(nn.Module):
    """A network that sees the mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images.flip(3))
        return found
