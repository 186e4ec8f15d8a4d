"""Contrastive distillation with a memory bank of all training images."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import to_device
from tutelage.distillation.losses.layered import LayerTerm, unit, whole_batch
from tutelage.distillation.losses.terms import Needs, TermBatch
from tutelage.models.features import POOLED, Layer


def contrast(similarities: Tensor, images: int, log_constant: Tensor, temperature: float) -> Tensor:
    """Noise-contrastive estimation (Tian 2020), a scalar: which of a bank's entries belongs to an image.

    ``-mean_b [log σ(l_b0 - c) + Σ_k log σ(c - l_bk)]``, with ``l = similarities / τ - log Z`` and
    ``c = log(K / images)``: with ``p = exp(l)`` this is the authors' ``log p / (p + K / N)``, but it does not overflow.

    Args:
        similarities: (B, 1 + K) inner products of unit vectors: with the image's own entry, and with K others.
        images: number of images in the bank, N.
        log_constant: log Z, the constant that makes ``p`` a probability, as a scalar.
        temperature: τ.
    """
    logits = similarities / temperature - log_constant
    others = logits.shape[1] - 1
    shifted = logits - math.log(others / images)
    return -(F.logsigmoid(shifted[:, 0]) + F.logsigmoid(-shifted[:, 1:]).sum(1)).mean()


class CRD(LayerTerm):
    """Contrastive representation distillation (Tian 2020), with a memory bank; see `losses.contrast`.

    Features of both networks are projected to `width` numbers of length 1; both projections are trained. The student's
    is contrasted with the bank of the teacher's, and the teacher's with the bank of the student's. The entries of the
    batch's images are then moved towards their present projections. It is a sum over `negatives` entries, so that its
    value is large and falls slowly.

    The banks take 8 · width bytes an image. They are in the checkpoint, and not in what is exported. With several
    processes the batch is that of all of them, and each has the same banks. The negatives are drawn once for a batch,
    from all images, and depend on the number of the step alone (the authors: for each image, from those of other
    classes). An image's own entry is not left out of them, as it is one of very many.

    Args:
        student: layer of the student, pooled to a vector for each image.
        teacher: layer of the teacher, likewise.
        width: numbers in a projection.
        negatives: entries of the bank that an image is told apart from, K; at most as many as there are images.
        temperature: τ of the similarities.
        momentum: share of its old value that an entry of the bank keeps.
        weight: factor of the term in the objective; the authors' is 0.8.
    """

    name = "crd"

    def __init__(
        self,
        student: Layer = POOLED,
        teacher: Layer = POOLED,
        width: int = 128,
        negatives: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weight: float = 0.8,
    ) -> None:
        super().__init__(student, teacher, weight)
        self.width, self.negatives = int(width), int(negatives)
        self.temperature, self.momentum = temperature, momentum

    @property
    def needs(self) -> Needs:
        """One layer of each network, and the index of each image."""
        return Needs(student_layers=self.student_layers, teacher_layers=self.teacher_layers, index=True)

    def make_projectors(self, student: list[int], teacher: list[int]) -> None:
        """Make the projections and the banks.

        Raises:
            TutelageError: the number of training images is not known.
        """
        if self.train_images is None:
            raise TutelageError(
                "crd: has a memory of all training images; give their number, as in Distiller(..., train_images=50_000)"
            )
        self.student_projector = nn.Linear(student[0], self.width)
        self.teacher_projector = nn.Linear(teacher[0], self.width)
        self.bank = Bank(self.train_images, self.width)

    def compare(self, student: list[Tensor], teacher: list[Tensor], batch: TermBatch) -> Tensor:
        """Compute the loss of a batch, and update the banks in a training step.

        Raises:
            TutelageError: the index of each image was not given, or is not below the number of training images.
        """
        if batch.index is None:
            raise TutelageError(
                "crd: needs the index of each image; give it as in distiller(images, labels, index=index)"
            )
        ours, theirs = self.vectors(student[0], teacher[0])
        index = whole_batch(batch.index)
        ours = whole_batch(unit(self.student_projector(ours)))
        theirs = whole_batch(unit(self.teacher_projector(theirs)))
        bank, images = self.bank, self.bank.student.shape[0]
        # CUDA would have to be waited for, and refuses such an index itself where it is looked up
        if index.device.type != "cuda" and (index >= images).any():
            raise TutelageError(
                f"crd: there are {images} training images, but an index of {int(index.max())}"
            )
        others = bank.draw(min(self.negatives, images))
        found = (
            _similarities(ours, bank.teacher, index, others),
            _similarities(theirs, bank.student, index, others),
        )
        if not bank.has_constants():
            for place, similarities in enumerate(found):
                log_mean = (similarities.detach() / self.temperature).flatten().logsumexp(0)
                bank.log_constants[place] = log_mean - math.log(similarities.numel()) + math.log(images)
        losses = [
            contrast(similarities, images, bank.log_constants[place].clone(), self.temperature)
            for place, similarities in enumerate(found)
        ]
        if torch.is_grad_enabled():
            bank.update(index, ours, theirs, self.momentum)
        return torch.stack(losses).sum()


class Bank(nn.Module):
    """One unit vector for each training image and each network; the state of a resumed training.

    Args:
        images: number of training images.
        width: numbers in a vector.
    """

    student: Tensor
    teacher: Tensor
    log_constants: Tensor
    step: Tensor

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        for name in ("student", "teacher"):
            self.register_buffer(name, unit(torch.rand(images, width) * 2 - 1))
        self.register_buffer("log_constants", torch.full((2,), math.nan))  # log Z of both; of the first batch
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._steps: int | None = None  # `step`, so that it is read from a device only once
        self._has_constants = False

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._steps, self._has_constants = None, False

    def has_constants(self) -> bool:
        """Whether a batch has set both constants; it is read from a device until it is so."""
        self._has_constants = self._has_constants or bool(self.log_constants.isfinite().all())
        return self._has_constants

    def draw(self, count: int) -> Tensor:
        """Draw (count,) entries with repetition, the same in every process and after a resume."""
        self._steps = int(self.step) if self._steps is None else self._steps
        generator = torch.Generator().manual_seed(self._steps)
        drawn = torch.randint(len(self.student), (count,), generator=generator)
        return to_device(drawn, self.student.device)

    @torch.no_grad()
    def update(self, index: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the entries at `index` (B,) towards the vectors (B, width), and count the step.

        Vectors that are not finite, of a step that the loop will skip, change nothing.
        """
        for bank, rows in ((self.student, student), (self.teacher, teacher)):
            new = unit(bank[index].lerp(rows.to(bank.dtype), 1 - momentum))
            good = new.isfinite().all(1, keepdim=True)
            bank[index] = torch.where(good, new, bank[index])
        self.step += 1
        self._steps = None if self._steps is None else self._steps + 1


def _similarities(rows: Tensor, bank: Tensor, index: Tensor, others: Tensor) -> Tensor:
    """Inner products (B, 1 + K) of rows with their own entries of a bank, and with others."""
    own = (rows * bank[index]).sum(1, keepdim=True)
    return torch.cat([own, rows @ bank[others].mT], dim=1)
