"""Student, projectors and teacher as one module, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.distillation.losses import KL, CrossEntropy, Term, TermBatch
from tutelage.distillation.objective import Objective
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.teacher import UNKNOWN_INPUT, TargetSource, Teacher, as_model
from tutelage.models.features import network_info, run_with_features
from tutelage.models.heads import device_of
from tutelage.models.source import Model


class Distiller(nn.Module):
    """The student and all that learns with it; a forward pass gives the losses.

    The student and the terms' projectors are its parameters and its state. The teacher is neither: it is frozen, and
    is not saved with it. So one module is what an optimizer, `DistributedDataParallel` and a checkpoint have to see::

        distiller = Distiller(student, Teacher("efficientvit_b3"), terms=[KL(temperature=2), CrossEntropy(0.5)])
        optimizer = AdamW(distiller.trainable_parameters())
        losses = distiller(images, labels)
        losses["loss"].backward()

    Args:
        student: NAME@WEIGHTS, a `Model`, or any ``nn.Module`` of (B, 3, H, W) to (B, C).
        teacher: what teaches: a `Teacher`, or what one is made of. None: no term needs one.
        terms: what is minimised, an `Objective` or its terms; by default KL and half of the labels' cross-entropy.
        image_size: (height, width) in pixels at which terms on layers are built; None: the student's own.

    Raises:
        TutelageError: a term needs a teacher and there is none, or a layer that a network does not have.
    """

    def __init__(
        self,
        student: Model | nn.Module | str,
        teacher: TargetSource | Model | nn.Module | str | None = None,
        terms: Objective | Sequence[Term | Callable[..., Tensor]] | None = None,
        *,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        model = as_model(student)
        if terms is None:
            terms = [KL(), CrossEntropy(0.5)] if teacher is not None else [CrossEntropy()]
        objective = terms if isinstance(terms, Objective) else Objective(terms)
        if objective.needs_teacher and teacher is None:
            raise TutelageError("Distiller: a term compares with a teacher, and none was given")
        device = device_of(model.module)
        if isinstance(teacher, Model | nn.Module | str):
            teacher = Teacher(teacher, device, layers=objective.teacher_layers)
        elif isinstance(teacher, Teacher):
            teacher.tap(objective.teacher_layers)
        self.student = model.module
        self.objective = objective
        self._spec = model.input_spec
        self._teacher = (teacher,)  # in a tuple: nn.Module would take its parameters for its own
        height, width = image_size or (self._spec.height, self._spec.width)
        ours = network_info(self.student, objective.student_layers, height, width, device)
        objective.build(ours, teacher.info(objective.teacher_layers) if teacher else ours)
        objective.to(device)

    @property
    def teacher(self) -> TargetSource | None:
        """What teaches."""
        return self._teacher[0]

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        other_labels: Tensor | None = None,
        lam: float = 1.0,
        teacher_images: Sequence[Tensor] | None = None,
        targets: Outputs | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            images: (B, 3, H, W), normalised as the student wants them.
            labels: (B,) int64, -1 where there is none; None: no image has one.
            other_labels: (B,) of the images mixed in, where `images` are mixed.
            lam: share of `labels` in mixed images.
            teacher_images: the same views as each teacher wants them; None: made of `images`, with the teacher's own
                resolution, mean and std.
            targets: the teacher's outputs, where they are known already; the teacher is not asked then.

        Returns:
            ``loss``, the scalar to minimise; ``logits`` (B, C) of the student in float32; and each weighted term by its
            name.
        """
        if labels is None:
            labels = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
        if targets is None and self.objective.needs_teacher:
            targets = self._ask(images, teacher_images)
        logits, features = run_with_features(
            self.student, self.student, images, self.objective.student_layers
        )
        logits = logits.float()
        other_labels = labels if other_labels is None else other_labels
        batch = TermBatch(Outputs(logits, features), targets, labels, other_labels, lam)
        return {"logits": logits, **self.objective(batch, self.student)}

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the student and of the projectors that take a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def _ask(self, images: Tensor, teacher_images: Sequence[Tensor] | None) -> Outputs:
        teacher = self.teacher
        if not isinstance(teacher, Teacher):
            raise TutelageError(
                "Distiller: give the teacher's outputs as `targets`, since it cannot be asked"
            )
        if teacher_images is None:
            with torch.no_grad():
                teacher_images = [as_wanted(images, self._spec, spec) for spec in teacher.input_specs]
        return teacher.outputs(teacher_images)


def as_wanted(images: Tensor, have: InputSpec, want: InputSpec) -> Tensor:
    """Images (B, 3, H, W) that are normalised for one model, as another wants them.

    Mean and std are exchanged, and the size is scaled by the ratio of both models' resolutions (bicubic, antialiased
    where it shrinks), so that both models see the same view. Where one of them is unknown, nothing is changed.
    """
    if have is UNKNOWN_INPUT or want is UNKNOWN_INPUT:
        return images
    if (have.mean, have.std) != (want.mean, want.std):
        std, mean, new_mean, new_std = (
            torch.tensor(v, device=images.device).view(-1, 1, 1)
            for v in (have.std, have.mean, want.mean, want.std)
        )
        images = (images * std + mean - new_mean) / new_std
    if (have.height, have.width) != (want.height, want.width):
        size = (
            round(images.shape[2] * want.height / have.height),
            round(images.shape[3] * want.width / have.width),
        )
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return images
