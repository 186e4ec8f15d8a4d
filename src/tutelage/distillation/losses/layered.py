"""What terms on layers have in common: the layers, full precision, the whole batch of all processes, and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import gathered
from tutelage.distillation.losses.logits import full_precision, widen
from tutelage.distillation.losses.terms import Needs, Term, TermBatch
from tutelage.models.features import Layer, NetworkInfo

Layers = Layer | Sequence[Layer]

# A vector whose largest entry is at most this counts as zero: it has no direction, and no gradient flows through it.
TINY = 1e-10


class LayerTerm(Term):
    """A term that compares layers of both networks, pair by pair.

    All is computed in float32 (float64 stays float64), also under autocast. No gradient flows to the teacher.

    Args:
        student: layer of the student, or a list of them: by module name, by its number in timm's ``feature_info``
            (negative: from the end), or ``pooled``, which is the input of the layer that gives the logits.
        teacher: layers of the teacher, as many.
        weight: factor of the term in the objective.

    Raises:
        TutelageError: there are not as many layers of the student as of the teacher.
    """

    def __init__(self, student: Layers, teacher: Layers, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.student_layers, self.teacher_layers = _listed(student), _listed(teacher)
        if len(self.student_layers) != len(self.teacher_layers) or not self.student_layers:
            raise TutelageError(
                f"{self.name}: {len(self.student_layers)} layers of the student and {len(self.teacher_layers)} of the "
                "teacher; name as many of both, such as student: [-2, -1], teacher: [-2, -1]"
            )
        self.prefixes = (0, 0)  # tokens of student and teacher before the patches

    @property
    def needs(self) -> Needs:
        """The layers of both networks."""
        return Needs(student_layers=self.student_layers, teacher_layers=self.teacher_layers)

    def build(self, student: NetworkInfo, teacher: NetworkInfo) -> None:
        """Note which tokens are no patches, and make the projectors."""
        self.prefixes = student.prefix_tokens, teacher.prefix_tokens
        self.make_projectors(
            [student.channels(layer) for layer in self.student_layers],
            [teacher.channels(layer) for layer in self.teacher_layers],
        )

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the term's own parameters.

        Args:
            student: channels of each layer of the student.
            teacher: channels of each layer of the teacher.
        """

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the loss of a batch, a scalar."""
        assert batch.teacher is not None
        ours = [widen(batch.student.features[layer]) for layer in self.student_layers]
        theirs = [widen(batch.teacher.features[layer].detach()) for layer in self.teacher_layers]
        with full_precision(ours[0]):
            return self.compare(ours, theirs, batch)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of the layers' outputs, (B, C, H, W), (B, N, C) or (B, C) each, in float32."""
        raise NotImplementedError

    def vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both outputs as one vector for each image, (B, C); see `as_vector`."""
        return as_vector(student, self.prefixes[0]), as_vector(teacher, self.prefixes[1])

    def maps(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both outputs as maps (B, C, H, W), each at its own resolution; see `as_map`."""
        return as_map(student, self.prefixes[0]), as_map(teacher, self.prefixes[1])


def whole_batch(rows: Tensor) -> Tensor:
    """Return the rows (B, ...) of all processes, for a loss that relates the images of a batch to one another.

    In a training step all processes call it together; without gradients, as in an evaluation of one process alone, each
    has its own rows.
    """
    return gathered(rows) if torch.is_grad_enabled() else rows


def as_vector(x: Tensor, prefix: int) -> Tensor:
    """Return an output as (B, C): the mean over a map, the class token of tokens (their mean where there is none).

    Args:
        x: (B, C, H, W), (B, N, C) or (B, C).
        prefix: number of tokens before the patches; the first of them is the class token.
    """
    if x.ndim == 4:
        return x.mean((2, 3))
    if x.ndim == 3:
        return x[:, 0] if prefix else x.mean(1)
    return x


def as_map(x: Tensor, prefix: int) -> Tensor:
    """Return an output as (B, C, H, W): the patches of tokens on their square grid.

    A vector is a map of one position, and so is the mean of tokens that fill no square.

    Args:
        x: (B, C, H, W), (B, N, C) or (B, C).
        prefix: number of tokens before the patches.
    """
    if x.ndim == 4:
        return x
    if x.ndim == 2:
        return x[:, :, None, None]
    patches = x[:, prefix:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        return patches.mean(1)[:, :, None, None]
    return patches.mT.unflatten(2, (side, side))


def on_common_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool two maps (B, C, H, W) to the smaller height and width of both."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return pooled(student, size), pooled(teacher, size)


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps (B, C, H, W) over the areas of a grid of (height, width).

    On CUDA, `F.adaptive_avg_pool2d` has no deterministic gradient, which `train.deterministic` needs. So it is used
    only where the areas differ, or are the whole maps, of which it takes the mean.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if size != (1, 1) and height % size[0] == width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(maps, size)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors along a dimension to length 1; one of length zero stays zero, with a gradient of zero.

    The largest entry is divided out first, so that no square overflows.
    """
    scale = x.detach().abs().amax(dim, keepdim=True)
    there = scale > TINY
    x = x / scale.where(there, 1)
    square = x.square().sum(dim, keepdim=True)
    return torch.where(there, x * square.where(there, 1).rsqrt(), 0)


def _listed(layers: Layers) -> tuple[Layer, ...]:
    return (layers,) if isinstance(layers, str | int) else tuple(layers)
