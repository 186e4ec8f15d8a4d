"""Relations between the images of a batch, or between the channels of an image, as the teacher has them.

No projector is needed where images are compared with images, so that student and teacher may have any numbers of
channels. Except for `channel_correlation`, with several processes the batch is that of all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.distillation.losses.layered import TINY, LayerTerm, as_map, unit, whole_batch
from tutelage.distillation.losses.logits import full_precision, widen
from tutelage.distillation.losses.terms import TermBatch
from tutelage.models.features import POOLED, Layer


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between images (Park 2019, RKD-D), a scalar: the mean of ``huber(d_ij(s)/μ(s), d_ij(t)/μ(t))``.

    ``d_ij`` is the Euclidean distance of the images i and j, ``μ`` the mean of all distances above zero; the mean is
    over all B² pairs, as in the authors' code. ``student`` is (B, C) and ``teacher`` (B, D). Zero when the teacher's
    distances are a multiple of the student's.
    """
    ours, theirs = (_relative_distances(widen(x)) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(ours, theirs)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angles between images (Park 2019, RKD-A), a scalar: the mean of ``huber(cos_ijk(s), cos_ijk(t))``.

    ``cos_ijk`` is the cosine of the angle at image j between the images i and k; the mean is over all B³ triples, and a
    triple with a distance of zero has cosine 0. ``student`` is (B, C) and ``teacher`` (B, D). Zero when the student is
    the teacher up to rotation, offset and scale. It takes memory for B² · (C + D + B) numbers.
    """
    ours, theirs = (_angles(widen(x)) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(ours, theirs)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarities of the images of a batch (Tung 2019), a scalar: ``‖G(t) - G(s)‖² / B²``.

    ``G(x)`` is ``x xᵀ`` with rows of length 1; x is an output of any shape (B, ...), flattened. Zero when the student
    is the teacher up to rotation and scale.
    """
    ours, theirs = (_similarities(widen(x).flatten(1)) for x in (student, teacher.detach()))
    return F.mse_loss(ours, theirs)


def cka(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus linear centred kernel alignment (Kornblith 2019), a scalar from 0 to 1.

    ``1 - <K(s), K(t)> / (‖K(s)‖ ‖K(t)‖)``, where ``K(x)`` is ``x xᵀ`` of features (B, C) that are centred over the
    batch. Zero when the student is the teacher up to rotation, offset and scale; 1 where all features of one of them
    are equal, as in a batch of one image.
    """
    ours, theirs = (unit(_centred_kernel(widen(x)).flatten()) for x in (student, teacher.detach()))
    return 1 - (ours * theirs).sum()


def channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlations of the channels of an image (Liu 2021, ICKD-C), a scalar: ``mean_b ‖G(t_b) - G(s_b)‖² / C``.

    ``G(x)`` is ``x xᵀ`` (C, C) with rows of length 1, of an image's channels x (C, positions). Both maps are
    (B, C, H, W) with the same C; their resolutions may differ. Zero when the student is a multiple of the teacher.
    """
    ours, theirs = (_correlations(widen(x)) for x in (student, teacher.detach()))
    return (ours - theirs).square().sum((1, 2)).mean() / student.shape[1]


class RKD(LayerTerm):
    """Relational distillation (Park 2019): distances and angles between images; see `losses.rkd_distance`.

    Args:
        student: layer of the student, pooled to a vector for each image.
        teacher: layer of the teacher, likewise.
        distance: factor of `losses.rkd_distance`.
        angle: factor of `losses.rkd_angle`.
        weight: factor of the term in the objective.
    """

    name = "rkd"

    def __init__(
        self,
        student: Layer = POOLED,
        teacher: Layer = POOLED,
        distance: float = 25.0,
        angle: float = 50.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, weight)
        self.distance, self.angle = distance, angle

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute both parts of a batch."""
        ours, theirs = map(whole_batch, self.vectors(student[0], teacher[0]))
        return self.distance * rkd_distance(ours, theirs) + self.angle * rkd_angle(ours, theirs)


class SimilarityPreserving(LayerTerm):
    """Similarities of the images of a batch (Tung 2019); see `losses.similarity_preserving`.

    Args:
        student: layer of the student, flattened.
        teacher: layer of the teacher, flattened.
        weight: factor of the term in the objective; the authors' is 3000.
    """

    name = "similarity_preserving"

    def __init__(self, student: Layer = -1, teacher: Layer = -1, weight: float = 3000.0) -> None:
        super().__init__(student, teacher, weight)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        return similarity_preserving(whole_batch(student[0]), whole_batch(teacher[0]))


class CKA(LayerTerm):
    """Centred kernel alignment (Kornblith 2019) as a loss; see `losses.cka`.

    Args:
        student: layer of the student, pooled to a vector for each image.
        teacher: layer of the teacher, likewise.
        weight: factor of the term in the objective.
    """

    name = "cka"

    def __init__(self, student: Layer = POOLED, teacher: Layer = POOLED, weight: float = 1.0) -> None:
        super().__init__(student, teacher, weight)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        return cka(*map(whole_batch, self.vectors(student[0], teacher[0])))


class ICKD(LayerTerm):
    """Inter-channel correlation (Liu 2021); see `losses.channel_correlation`.

    The student's channels are projected to as many as the teacher has (a 1x1 convolution with bias).

    Args:
        student: layer of the student, as a map.
        teacher: layer of the teacher, as a map.
        weight: factor of the term in the objective; the authors' is 2.5.
    """

    name = "ickd"

    def __init__(self, student: Layer = -1, teacher: Layer = -1, weight: float = 2.5) -> None:
        super().__init__(student, teacher, weight)

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the 1x1 convolution."""
        self.projector = nn.Conv2d(student[0], teacher[0], kernel_size=1)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch."""
        ours = self.projector(as_map(student[0], self.prefixes[0]))
        return channel_correlation(ours, as_map(teacher[0], self.prefixes[1]))


def _relative_distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B) of rows, divided by the mean of those above zero; their gradient at zero is zero."""
    # by differences, since those by products lose all digits where images are close
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.where(mean > TINY, 1)


def _angles(x: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angles at each row between all pairs of rows."""
    directions = unit(x.unsqueeze(0) - x.unsqueeze(1))
    return _products(directions)


def _similarities(x: Tensor) -> Tensor:
    return unit(_products(x))


def _centred_kernel(x: Tensor) -> Tensor:
    return _products(x - x.mean(0))


def _correlations(maps: Tensor) -> Tensor:
    return unit(_products(maps.flatten(2)))


def _products(x: Tensor) -> Tensor:
    """Inner products (..., N, N) of the rows of (..., N, C)."""
    with full_precision(x):
        return x @ x.mT
