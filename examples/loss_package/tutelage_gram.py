"""The term ``gram``: the student's channels, projected, are to be correlated as the teacher's are.

In a recipe: ``loss.terms: [{gram: {student: -1, teacher: -1, weight: 10}}, {cross_entropy: {}}]``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.losses import Needs, Term, TermBatch
from tutelage.models.features import Layer, NetworkInfo


class Gram(Term):
    """Mean squared difference of the Gram matrices of two layers (Yim 2017 compares such of two layers each)."""

    name = "gram"

    def __init__(self, student: Layer = -1, teacher: Layer = -1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.student_layer, self.teacher_layer = student, teacher

    @property
    def needs(self) -> Needs:
        return Needs(student_layers=(self.student_layer,), teacher_layers=(self.teacher_layer,))

    def build(self, student: NetworkInfo, teacher: NetworkInfo) -> None:
        channels = student.channels(self.student_layer), teacher.channels(self.teacher_layer)
        self.projector = nn.Conv2d(*channels, kernel_size=1)

    def forward(self, batch: TermBatch) -> Tensor:
        assert batch.teacher is not None
        student = self.projector(batch.student.features[self.student_layer])
        return F.mse_loss(gram(student), gram(batch.teacher.features[self.teacher_layer]))


def gram(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, C), in float32: products of normalised channels."""
    channels = F.normalize(maps.float().flatten(2), dim=2)
    return channels @ channels.mT
