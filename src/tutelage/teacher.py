"""The teacher's targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tutelage.inputs import InputSpec
from tutelage.losses import mean_teacher_logits
from tutelage.models import Model


class Teacher:
    """One or several frozen networks that look at the student's view, each in its own way.

    Args:
        models: networks whose heads have the same classes in the same order.
        device: where they run.
        precision: bf16 runs them under autocast; the targets are float32 in either case.
    """

    def __init__(
        self, models: Sequence[Model], device: torch.device, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.models = list(models)
        self.device = device
        self.precision = precision
        for model in self.models:
            model.module.eval().requires_grad_(False).to(device)

    @property
    def inputs(self) -> list[InputSpec]:
        """How each network wants its pictures."""
        return [model.input for model in self.models]

    @torch.no_grad()
    def targets(self, images: Sequence[Tensor]) -> Tensor:
        """Logits (B, C) in float32 of one batch, given once in each network's own form.

        Several teachers give the logarithm of their mean probability.
        """
        outputs = []
        for model, batch in zip(self.models, images, strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                outputs.append(model.module(batch).float())
        return outputs[0] if len(outputs) == 1 else mean_teacher_logits(outputs)
