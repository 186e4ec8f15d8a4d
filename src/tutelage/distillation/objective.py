"""What one training step minimises, returned in parts so that each can be logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.core.recipe import LossRecipe
from tutelage.distillation import losses
from tutelage.distillation.targets.layout import Targets, TopK


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    Attributes:
        images: (B, 3, H, W) the student's, normalised.
        labels: (B,) head indices, -1 where there is none.
        other_labels: (B,) of the images mixed in; equal to labels without mixing.
        lam: share of the first label.
        targets: (B, C) teacher's logits, or the largest of them; None without a teacher.
    """

    images: Tensor
    labels: Tensor
    other_labels: Tensor
    lam: float
    targets: Targets | None


class Objective:
    """weight * kd + label_weight * cross-entropy, and L2-SP where asked for.

    Args:
        recipe: names the loss and its weights.
        distil: without a teacher only the cross-entropy is left, at weight 1.
        label_smoothing: of the hard labels.
        l2_sp: strength of the pull towards `start` (Li et al. 2018, "Explicit inductive bias for transfer
            learning"); the head is left out when it is not in `start`.
        start: the starting parameters by name.
    """

    def __init__(
        self, recipe: LossRecipe, *, distil: bool, l2_sp: float = 0.0, start: dict[str, Tensor] | None = None
    ) -> None:
        self.recipe = recipe
        self.distil = distil
        self.l2_sp = l2_sp
        self.start = start or {}
        self.kd = losses.get(recipe.name)
        self.kd.check(recipe.options)

    @property
    def label_weight(self) -> float:
        """Of the cross-entropy."""
        return self.recipe.label_weight if self.distil else 1.0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The student's `output` (B, C) and the scalar parts: `loss` is the sum that is minimised."""
        output = model(batch.images).float()
        parts = self.parts(output, batch)
        if self.l2_sp:
            parts["l2_sp"] = self.l2_sp / 2 * self._distance(model)
        return {"output": output, "loss": torch.stack(list(parts.values())).sum(), **parts}

    def parts(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms that depend on the output alone; also used on val."""
        parts: dict[str, Tensor] = {}
        if self.distil and self.recipe.weight:
            parts["kd"] = self.recipe.weight * self._kd(output, batch)
        if self.label_weight:
            parts["label"] = self.label_weight * losses.hard_label_loss(
                output, batch.labels, batch.other_labels, batch.lam, self.recipe.label_smoothing
            )
        return parts

    def _kd(self, output: Tensor, batch: Batch) -> Tensor:
        targets, temperature = batch.targets, self.recipe.temperature
        assert targets is not None
        if isinstance(targets, TopK):
            return losses.kl_top_k(output, targets.indices, targets.log_probs, temperature)
        labels = losses.dominant_labels(batch.labels, batch.other_labels, batch.lam)
        return self.kd(output, targets, labels, temperature=temperature, **self.recipe.options)

    def _distance(self, model: nn.Module) -> Tensor:
        module = getattr(model, "module", model)
        squares = [
            (parameter - self.start[name]).square().sum()
            for name, parameter in module.named_parameters()
            if name in self.start and parameter.requires_grad
        ]
        return torch.stack(squares).sum()
