"""Terms that compare layers inside the student with layers inside the teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses.layered import on_common_grid
from tutelage.distillation.losses.logits import widen
from tutelage.distillation.losses.terms import Needs, Term, TermBatch
from tutelage.models.features import Layer, NetworkInfo

PROJECTORS = ("linear", "none")


class FeatureMSE(Term):
    """Hints (Romero 2015, "FitNets"): mean squared error between a student's layer, projected, and a teacher's.

    The mean is over batch, positions and the teacher's channels. Maps of different sizes are pooled to the smaller
    grid; a map and tokens, or different numbers of tokens, are pooled to their mean. Zero when the projected student
    equals the teacher.

    Args:
        student: layer of the student, by module name or by its number in timm's ``feature_info``.
        teacher: layer of the teacher, likewise.
        projector: ``linear`` (a 1x1 convolution with bias, trained with the student) or ``none``, which needs the same
            number of channels.
        weight: factor of the term in the objective.
    """

    name = "feature_mse"

    def __init__(
        self, student: Layer, teacher: Layer, projector: str = "linear", weight: float = 1.0
    ) -> None:
        super().__init__(weight)
        if projector not in PROJECTORS:
            raise TutelageError(f"feature_mse: projector {projector!r}: use one of {', '.join(PROJECTORS)}")
        self.student_layer, self.teacher_layer, self.kind = student, teacher, projector
        self.projector: nn.Module = nn.Identity()

    @property
    def needs(self) -> Needs:
        """One layer of each network."""
        return Needs(student_layers=(self.student_layer,), teacher_layers=(self.teacher_layer,))

    def build(self, student: NetworkInfo, teacher: NetworkInfo) -> None:
        """Make the projector.

        Raises:
            TutelageError: there is no projector and the channels differ.
        """
        ours, theirs = student.channels(self.student_layer), teacher.channels(self.teacher_layer)
        if self.kind == "linear":
            self.projector = nn.Linear(ours, theirs)
        elif ours != theirs:
            raise TutelageError(
                f"feature_mse: layer {self.student_layer!r} has {ours} channels, the teacher's "
                f"{self.teacher_layer!r} has {theirs}; use projector: linear"
            )

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the mean squared error, a scalar, in float32 (float64 stays float64)."""
        assert batch.teacher is not None
        student = batch.student.features[self.student_layer]
        teacher = batch.teacher.features[self.teacher_layer].detach()
        ours, theirs = pooled_alike(student, teacher)
        return F.mse_loss(widen(self.projector(ours)), widen(theirs))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two layers' outputs as (B, N, C) with the same N: pooled to the smaller grid, or to their mean."""
    if student.ndim == teacher.ndim == 4:
        ours, theirs = (x.flatten(2).mT for x in on_common_grid(student, teacher))
        return ours, theirs
    if student.ndim == teacher.ndim == 3 and student.shape[1] == teacher.shape[1]:
        return student, teacher
    return _mean(student), _mean(teacher)


def _mean(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x.mean((2, 3)).unsqueeze(1)
    return x.mean(1, keepdim=True) if x.ndim == 3 else x.unsqueeze(1)
