"""Features of the student that are to be those of the teacher, after a projection that is trained with the student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from tutelage.distillation.losses.layered import Layers, LayerTerm, on_common_grid, unit, whole_batch
from tutelage.distillation.losses.logits import widen
from tutelage.distillation.losses.terms import TermBatch
from tutelage.models.features import POOLED, Layer

LAST_THREE = (-3, -2, -1)
# Added to the mean inside the logarithm of `srd`, so that its gradient is zero and not NaN where both are equal.
SRD_FLOOR = 1e-8
VARIANCE_FLOOR = 1e-5  # that of BatchNorm


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Where both networks are active (Zagoruyko 2017), a scalar: the mean of ``(a(s) - a(t))²``.

    ``a(x)`` is the mean of ``x²`` over the channels of a map (B, C, H, W), pooled to the smaller grid of both, with
    length 1 over the positions of an image. It is the form of the authors' code; the paper has the norm of the
    difference in place of its mean square. Zero when the student is the teacher up to scale and order of the channels.
    """
    ours, theirs = on_common_grid(_activity(widen(student)), _activity(widen(teacher.detach())))
    return F.mse_loss(unit(ours.flatten(1)), unit(theirs.flatten(1)))


def srd(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    """Log distance of standardised features (Miles 2024, SRD), a scalar: ``log(mean |z(s) - z(t)|^α + 1e-8)``.

    ``z(x)`` has mean 0 and variance 1 over the batch for each of the features (B, C). The paper has the sum in place of
    the mean, which adds a constant. At its minimum, log(1e-8), when the student is the teacher up to the offset and a
    positive scale of each feature, as in a batch of one image.
    """
    ours, theirs = (_standardised(widen(x)) for x in (student, teacher.detach()))
    return ((ours - theirs).abs().pow(exponent).mean() + SRD_FLOOR).log()


class AttentionTransfer(LayerTerm):
    """Attention transfer (Zagoruyko 2017), summed over the layers; see `losses.attention_transfer`.

    Args:
        student: layers of the student, as maps.
        teacher: as many layers of the teacher.
        weight: factor of the term in the objective; the authors' is 1000.
    """

    name = "attention_transfer"

    def __init__(
        self, student: Layers = LAST_THREE, teacher: Layers = LAST_THREE, weight: float = 1000.0
    ) -> None:
        super().__init__(student, teacher, weight)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        pairs = [self.maps(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
        return torch.stack([attention_transfer(*pair) for pair in pairs]).sum()


class VkD(LayerTerm):
    """Features after an orthogonal projection (Miles 2024, "VkD").

    The mean of ``huber(W s - z(t))`` over batch and features. ``W`` has orthonormal rows or columns, whichever are
    fewer, so that it cannot shrink or mix up the student's features. ``z(t)`` are the teacher's features (B, D) with
    mean 0 and variance 1 over the features of an image. Zero when the projected student equals ``z(t)``.

    Args:
        student: layer of the student, pooled to a vector for each image.
        teacher: layer of the teacher, likewise.
        weight: factor of the term in the objective.
    """

    name = "vkd"

    def __init__(self, student: Layer = POOLED, teacher: Layer = POOLED, weight: float = 1.0) -> None:
        super().__init__(student, teacher, weight)

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the projection, which torch keeps orthogonal (Cayley's transform of a skew-symmetric matrix)."""
        # a quarter of the time of the matrix exponential that the authors use; both reach the same matrices
        layer = nn.Linear(student[0], teacher[0], bias=False)
        self.projector = orthogonal(layer, orthogonal_map="cayley")

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        ours, theirs = self.vectors(student[0], teacher[0])
        return F.smooth_l1_loss(self.projector(ours), _normalised(theirs))


class SRD(LayerTerm):
    """Log distance of standardised features after a linear projection (Miles 2024, "Projector"); see `losses.srd`.

    Args:
        student: layer of the student, pooled to a vector for each image.
        teacher: layer of the teacher, likewise.
        exponent: α of the distance.
        weight: factor of the term in the objective.
    """

    name = "srd"

    def __init__(
        self, student: Layer = POOLED, teacher: Layer = POOLED, exponent: float = 4.0, weight: float = 1.0
    ) -> None:
        super().__init__(student, teacher, weight)
        self.exponent = exponent

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the projection; a bias would be lost in the standardisation."""
        self.projector = nn.Linear(student[0], teacher[0], bias=False)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch, with statistics of the whole batch of all processes."""
        ours, theirs = self.vectors(student[0], teacher[0])
        return srd(whole_batch(self.projector(ours)), whole_batch(theirs), self.exponent)


class TokenMSE(LayerTerm):
    """Hints for transformers (Romero 2015): mean squared errors of the class token and of the patches.

    It is ``class_token · mean (W s_0 - z(t_0))² + patches · mean (V s_p - z(t_p))²``, where ``W`` and ``V`` are linear
    with a bias, ``z`` has mean 0 and variance 1 over the features of a token, and p are the patches on the smaller grid
    of both. A network without a class token has its pooled features in place of it, and a map is a grid of patches, so
    that a convolutional network and a transformer can be compared, either way round. Zero when the projected student
    equals the teacher's normalised tokens.

    Args:
        student: layer of the student.
        teacher: layer of the teacher.
        class_token: factor of the class token's part.
        patches: factor of the patches' part.
        weight: factor of the term in the objective.
    """

    name = "token_mse"

    def __init__(
        self,
        student: Layer = -1,
        teacher: Layer = -1,
        class_token: float = 1.0,
        patches: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, weight)
        self.class_token, self.patches = class_token, patches

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make one projection for the class token and one for the patches."""
        self.class_projector = nn.Linear(student[0], teacher[0])
        self.patch_projector = nn.Linear(student[0], teacher[0])

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute both parts of a batch."""
        ours, theirs = self.vectors(student[0], teacher[0])
        whole = F.mse_loss(self.class_projector(ours), _normalised(theirs))
        our_patches, their_patches = (
            x.flatten(2).mT for x in on_common_grid(*self.maps(student[0], teacher[0]))
        )
        parts = F.mse_loss(self.patch_projector(our_patches), _normalised(their_patches))
        return self.class_token * whole + self.patches * parts


def _activity(maps: Tensor) -> Tensor:
    return maps.square().mean(1, keepdim=True)


def _standardised(x: Tensor) -> Tensor:
    """Give each feature of (B, C) mean 0 and variance 1 over the batch; a constant one becomes zero."""
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * (variance + VARIANCE_FLOOR).rsqrt()


def _normalised(x: Tensor) -> Tensor:
    """Give the features (..., C) of each row mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])
