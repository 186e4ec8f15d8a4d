"""The outputs of a network for one batch, as losses take them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.core.runtime import to_device
from tutelage.models.features import Layer


@dataclass(frozen=True)
class TopK:
    """Targets that hold only the most probable classes; see `losses.kl_top_k`.

    Attributes:
        indices: (B, k) int64, classes.
        log_probs: (B, k) float32, at the temperature of the loss.
    """

    indices: Tensor
    log_probs: Tensor

    def to(self, device: torch.device) -> TopK:
        """Copy to a device, as `Outputs.to`."""
        return TopK(to_device(self.indices, device), to_device(self.log_probs, device))


Targets = Tensor | TopK


@dataclass(frozen=True)
class Outputs:
    """Logits and tapped layers of one network for one batch.

    Attributes:
        logits: (B, C), or the most probable classes of them; None where a teacher has no head.
        features: the output of each tapped layer, by the layer as the term named it: (B, C, H, W), (B, N, C) or (B, C).
    """

    logits: Targets | None
    features: dict[Layer, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Outputs:
        """Copy from the CPU to a device; the CPU does not wait for a GPU to take them."""
        logits = self.logits
        if isinstance(logits, TopK):
            logits = logits.to(device)
        elif logits is not None:
            logits = to_device(logits, device)
        return Outputs(logits, {layer: to_device(one, device) for layer, one in self.features.items()})
