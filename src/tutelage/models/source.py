"""What a model is to the rest of the package, wherever it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import nn

from tutelage.data.input_spec import InputSpec


@dataclass(frozen=True)
class Model:
    """A classifier and what is known about it.

    Attributes:
        spec: NAME@WEIGHTS as given.
        name: timm's.
        module: (B, 3, H, W) normalised images to (B, C) logits; in eval mode, channels last, float32.
        input_spec: how it wants its pictures.
        class_ids: of its head, in order (WordNet ids for ImageNet's heads); None where unknown.
        class_names: for people, in order; None where unknown.
        origin: where the weights are from.
        pretrained: False for random weights.
    """

    spec: str
    name: str
    module: nn.Module
    input_spec: InputSpec
    class_ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    origin: str
    pretrained: bool

    @property
    def num_classes(self) -> int:
        """Size of the head."""
        return int(self.module.num_classes)  # type: ignore[arg-type]

    def metadata(self) -> dict[str, str]:
        """What `save_weights` stores, so that ``NAME@file`` brings back classes and input."""
        known = {
            "timm": self.name,
            "input": json.dumps(self.input_spec.to_dict()),
            "class_ids": json.dumps(self.class_ids),
            "class_names": json.dumps(self.class_names),
        }
        return {key: value for key, value in known.items() if value != "null"}
