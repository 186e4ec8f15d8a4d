"""One change of the weights by the gradients of a batch, or none where these are not finite."""

from __future__ import annotations

from collections import defaultdict

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from tutelage.distillation.distiller import Distiller

LOWEST_SCALE = 1.0  # below which gradients that are not finite are not due to the scale


class Updater:
    """Changes weights and moving average after a batch, and undoes what a batch that is not finite has changed.

    Whether gradients are finite is known on the device only. A fused optimizer reads it there and leaves the weights as
    they are, so that the host does not wait for each step. Other optimizers need the answer first.

    Args:
        distiller: has all parameters.
        optimizer: of these.
        ema: the moving average of the student; None where there is none.
        clip_grad: the largest norm of the gradient; None: not clipped.
        scaler: for a training in fp16, whose small gradients would be 0 without it; None: in another precision.
    """

    def __init__(
        self,
        distiller: Distiller,
        optimizer: Optimizer,
        ema: ModelEmaV3 | None,
        clip_grad: float | None,
        scaler: GradScaler | None = None,
    ) -> None:
        self.optimizer, self.ema, self.clip_grad, self.scaler = optimizer, ema, clip_grad, scaler
        self.skips_on_device = bool(optimizer.defaults.get("fused"))
        self._parameters = list(distiller.parameters())
        self._distiller = distiller
        self._before = [[buffer.clone() for buffer in group] for group in self._buffers()]

    def remember(self) -> None:
        """Keep what the forward pass of a batch changes: the running averages of BatchNorm."""
        for before, buffers in zip(self._before, self._buffers(), strict=True):
            torch._foreach_copy_(before, buffers)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, or of a part of it."""
        scaled = self.scaler.scale(loss) if self.scaler else loss
        scaled.backward()

    def apply(self, loss: Tensor, step: int) -> Tensor:
        """Make a step of the optimizer with the gradients, unless one of them or the loss is not finite.

        Args:
            loss: () of the batch, the mean over all processes.
            step: number of the step, from 1, by which the decay of the moving average grows.

        Returns:
            () bool on the device: whether the step was made, or was left out only since the scale of fp16 was too high,
            which is lowered then.
        """
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        good = loss.isfinite() & norm.isfinite()
        if self.skips_on_device:
            # as torch.amp.GradScaler tells a fused optimizer; also its step counters stay
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        stepped = self.skips_on_device or bool(good)
        if stepped:
            self._step(norm)
        if self.skips_on_device or not stepped:
            self._restore(good)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema and stepped:
            self.ema.update(self._distiller.student, step=step)
        return good if self.scaler is None else good | self._lowered(self.scaler, loss)

    def _lowered(self, scaler: GradScaler, loss: Tensor) -> Tensor:
        """Lower the scale after gradients that are not finite, or raise it after many that are.

        Returns:
            () bool on the device: whether gradients that are not finite are due to the scale.
        """
        explained = loss.isfinite() & (scaler.scale(torch.ones_like(loss)) >= LOWEST_SCALE)
        scaler.update()
        return explained

    def _step(self, norm: Tensor) -> None:
        if self.clip_grad:
            clip_grads_with_norm_(self._parameters, self.clip_grad, norm)
        self.optimizer.step()

    def _restore(self, good: Tensor) -> None:
        """Put the running averages back where the step was not good; the bad batch is in them."""
        for before, buffers in zip(self._before, self._buffers(), strict=True):
            for old, new in zip(before, buffers, strict=True):
                new.copy_(torch.where(good, new, old))

    def _buffers(self) -> list[list[Tensor]]:
        """Return the buffers that a bad step spoils, by their type: the student's, and the statistics of projectors.

        A network may exchange a buffer in its forward pass, so that they are looked up each time.
        """
        groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        parts = [part for part in self._distiller.objective.modules() if isinstance(part, _BatchNorm)]
        for module in (self._distiller.student, *parts):
            for buffer in module.buffers():
                groups[buffer.dtype].append(buffer)
        return list(groups.values())


def parts_of(count: int, parts: int) -> list[slice]:
    """Return equal parts of a batch."""
    size = count // parts
    return [slice(start, start + size) for start in range(0, parts * size, size)]
