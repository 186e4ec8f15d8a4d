"""One module of student, projectors and teacher, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.distillation.losses import KL, CrossEntropy, Term, TermBatch
from tutelage.distillation.losses.contrastive import Bank
from tutelage.distillation.objective import Objective
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.teacher import UNKNOWN_INPUT, TargetSource, Teacher, as_model
from tutelage.models.features import network_info, run_with_features
from tutelage.models.heads import device_of
from tutelage.models.source import Model


class Distiller(nn.Module):
    """A student with its teacher and its loss terms; a forward pass gives the losses.

    Its parameters and its state are those of the student and of the terms' projectors. The teacher is frozen, and is
    not saved with it. So an optimizer, `DistributedDataParallel` and a checkpoint need this module only::

        distiller = Distiller(student, Teacher("efficientvit_b3"), terms=[KL(temperature=2), CrossEntropy(0.5)])
        optimizer = AdamW(distiller.trainable_parameters())
        losses = distiller(images, labels)
        losses["loss"].backward()

    Args:
        student: NAME@WEIGHTS, a `Model`, or any ``nn.Module`` of (B, 3, H, W) to (B, C).
        teacher: a `Teacher`, or a model to make one of. None: no term needs one.
        terms: an `Objective` or its terms; by default KL, and cross-entropy with the labels with a weight of 0.5.
        image_size: (height, width) in pixels at which terms on layers are built; None: the student's own.
        train_images: number of training images, which a term with a memory bank needs.

    Raises:
        TutelageError: a term needs a teacher that was not given, or a layer that a network does not have.
    """

    def __init__(
        self,
        student: Model | nn.Module | str,
        teacher: TargetSource | Model | nn.Module | str | None = None,
        terms: Objective | Sequence[Term | Callable[..., Tensor]] | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        train_images: int | None = None,
    ) -> None:
        super().__init__()
        model = as_model(student)
        if terms is None:
            terms = [KL(), CrossEntropy(0.5)] if teacher is not None else [CrossEntropy()]
        objective = terms if isinstance(terms, Objective) else Objective(terms)
        if objective.needs_teacher and teacher is None:
            raise TutelageError("Distiller: a term compares with a teacher, but none was given")
        device = device_of(model.module)
        if isinstance(teacher, Model | nn.Module | str):
            teacher = Teacher(teacher, device, layers=objective.teacher_layers)
        elif isinstance(teacher, Teacher):
            teacher.tap(objective.teacher_layers)
        self.student = model.module
        self.objective = objective
        self._spec = model.input_spec
        self._teacher = (teacher,)  # in a tuple, since nn.Module would register it as a submodule
        height, width = image_size or (self._spec.height, self._spec.width)
        info = network_info(self.student, objective.student_layers, height, width, device)
        objective.build(info, teacher.info(objective.teacher_layers) if teacher else info, train_images)
        objective.to(device)
        # every process keeps the same bank by itself; DistributedDataParallel would send it in each step
        self._ddp_params_and_buffers_to_ignore = [
            f"{bank}.{name}"
            for bank, module in self.named_modules()
            if isinstance(module, Bank)
            for name, _ in module.named_buffers()
        ]

    @property
    def teacher(self) -> TargetSource | None:
        """The teacher, or None."""
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
        index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            images: (B, 3, H, W), normalised for the student.
            labels: (B,) int64, -1 where an image has no label; None: no image has one.
            other_labels: (B,) labels of the images mixed in, where `images` are mixed.
            lam: share of `labels` in mixed images.
            teacher_images: the same views in each teacher's own form; None: converted from `images` to the teacher's
                resolution, mean and std.
            targets: the teacher's outputs, where they are known already; the teacher is not run then.
            index: (B,) int64 positions of the images in the training images, which a memory bank needs.

        Returns:
            ``loss``, the scalar to minimise; ``logits`` (B, C) of the student in float32; and each weighted term by its
            name.

        Raises:
            TutelageError: the teacher is a cache, and `targets` were not given.
        """
        if labels is None:
            labels = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
        if targets is None and self.objective.needs_teacher:
            targets = self._run_teacher(images, teacher_images)
        logits, features = run_with_features(
            self.student, self.student, images, self.objective.student_layers
        )
        logits = logits.float()
        other_labels = labels if other_labels is None else other_labels
        batch = TermBatch(Outputs(logits, features), targets, labels, other_labels, lam, index)
        return {"logits": self.objective.answers(logits), **self.objective(batch, self.student)}

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the student and of the projectors that take a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def _run_teacher(self, images: Tensor, teacher_images: Sequence[Tensor] | None) -> Outputs:
        teacher = self.teacher
        if not isinstance(teacher, Teacher):
            raise TutelageError("Distiller: give the teacher's outputs as `targets`, since it cannot be run")
        if teacher_images is None:
            with torch.no_grad():
                teacher_images = [converted(images, self._spec, spec) for spec in teacher.input_specs]
        return teacher.outputs(teacher_images)


def converted(images: Tensor, have: InputSpec, want: InputSpec) -> Tensor:
    """Convert images (B, 3, H, W) from the input of one model to that of another.

    Mean and std are exchanged, and the size is scaled by the ratio of both models' resolutions (bicubic, antialiased
    where it shrinks), so that both models see the same view. Where one of the inputs is unknown, nothing is changed.
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
