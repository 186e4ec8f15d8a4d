"""Knowledge review: the student's stages, fused from the last to the first, against each of the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.distillation.losses.layered import Layers, LayerTerm, on_common_grid, pooled
from tutelage.distillation.losses.logits import widen
from tutelage.distillation.losses.terms import TermBatch
from tutelage.models.features import POOLED

STAGES = (-3, -2, -1, POOLED)
GRIDS = (4, 2, 1)  # to which the maps are pooled, beside their own
MOST_CHANNELS = 512


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared errors of maps at several resolutions (Chen 2021, HCL), a scalar.

    ``Σ_k w_k · mean (pool_k(s) - pool_k(t))² / Σ_k w_k`` over the maps as they are (weight 1) and pooled to 4x4, 2x2
    and 1x1, as far as these are smaller (weights 1/2, 1/4, ...). Both are (B, C, H, W) of one size. Zero when the
    student equals the teacher.
    """
    student, teacher = widen(student), widen(teacher.detach())
    loss, total, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for grid in GRIDS:
        if grid >= student.shape[2]:
            continue
        weight /= 2
        total += weight
        ours, theirs = (pooled(maps, (grid, grid)) for maps in (student, teacher))
        loss = loss + weight * F.mse_loss(ours, theirs)
    return loss / total


class ReviewKD(LayerTerm):
    """Knowledge review (Chen 2021): fused stages of the student against those of the teacher.

    From the last layer to the first, the student's map is brought to a common width, mixed with that of the layer
    behind it (with weights between 0 and 1 for each position, which are learnt), and projected to the teacher's
    channels: ABF in the paper. Each is compared by `losses.hierarchical_context`, and these are summed. The statistics
    (BatchNorm) are those of each process's own part of a batch. Zero when all fused maps equal the teacher's.

    Args:
        student: layers of the student, as maps, from the first to the last.
        teacher: as many layers of the teacher.
        weight: factor of the term in the objective.
    """

    name = "review_kd"

    def __init__(self, student: Layers = STAGES, teacher: Layers = STAGES, weight: float = 1.0) -> None:
        super().__init__(student, teacher, weight)

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the fusions, one for each layer."""
        width = min(MOST_CHANNELS, student[-1])
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            _Fusion(ours, width, theirs, fuses=place < last)
            for place, (ours, theirs) in enumerate(zip(student, teacher, strict=True))
        )

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        behind: Tensor | None = None
        losses = []
        for fusion, ours, theirs in zip(reversed(self.fusions), student[::-1], teacher[::-1], strict=True):
            our_map, their_map = self.maps(ours, theirs)
            fused, behind = fusion(our_map, behind)
            losses.append(hierarchical_context(*on_common_grid(fused, their_map)))
        return torch.stack(losses).sum()


class _Fusion(nn.Module):
    """Mixes a map (B, C, H, W) with the one behind it, and projects the mixture.

    Args:
        channels: C.
        width: channels in which maps are mixed.
        outputs: channels of the teacher's map.
        fuses: whether there is a map behind it.
    """

    def __init__(self, channels: int, width: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), _BatchNorm(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.project = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), _BatchNorm(outputs))

    def forward(self, maps: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the projection (B, outputs, H, W) and the mixture (B, width, H, W)."""
        mixture = self.narrow(maps)
        if self.attention is not None:
            assert behind is not None
            behind = F.interpolate(behind, maps.shape[2:], mode="nearest")
            own, other = self.attention(torch.cat([mixture, behind], dim=1)).sigmoid().chunk(2, dim=1)
            mixture = mixture * own + behind * other
        return self.project(mixture), mixture


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a batch has one value a channel, which has no variance."""

    def forward(self, maps: Tensor) -> Tensor:
        if self.training and maps.numel() == maps.shape[1]:
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(maps)
