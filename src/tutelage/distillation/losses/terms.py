"""The terms of an objective. Each declares what it needs, and returns a scalar."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import gathered
from tutelage.distillation.losses import logits
from tutelage.distillation.losses.function import LossFunction
from tutelage.distillation.losses.labels import class_weights, dominant_labels, hard_label_loss
from tutelage.distillation.outputs import Outputs, TopK
from tutelage.models.features import Layer, NetworkInfo


@dataclass(frozen=True)
class Needs:
    """What a term uses of a batch.

    Attributes:
        labels: hard labels; the term leaves images without one out.
        teacher_logits: the teacher's logits.
        student_layers: layers of the student whose outputs it compares.
        teacher_layers: layers of the teacher whose outputs it compares.
        top_k: whether targets that hold only the most probable classes are enough.
        index: the position of each image in the training images, such as for a memory bank.
    """

    labels: bool = False
    teacher_logits: bool = False
    student_layers: tuple[Layer, ...] = ()
    teacher_layers: tuple[Layer, ...] = ()
    top_k: bool = False
    index: bool = False

    @property
    def teacher(self) -> bool:
        """Whether a teacher is needed at all."""
        return self.teacher_logits or bool(self.teacher_layers)


@dataclass(frozen=True)
class TermBatch:
    """One batch as the terms get it, on the device.

    Attributes:
        student: logits (B, C) and tapped layers of the student.
        teacher: the same of the teacher, without gradients; None where no term needs a teacher.
        labels: (B,) int64 head indices, -1 where an image has no label.
        other_labels: (B,) labels of the images mixed in; equal to `labels` without mixing.
        lam: share of `labels`, 1 without mixing.
        index: (B,) int64 position of each image (where images are mixed, of the one with the larger share) in the
            training images; None where it is not known.
    """

    student: Outputs
    teacher: Outputs | None
    labels: Tensor
    other_labels: Tensor
    lam: float = 1.0
    index: Tensor | None = None

    @property
    def dominant_labels(self) -> Tensor:
        """One label for each image (B,): where images are mixed, that of the larger share."""
        return dominant_labels(self.labels, self.other_labels, self.lam)


class Term(nn.Module):
    """One term of an objective.

    A term with parameters of its own (a projector) makes them in `build`; they are trained, checkpointed and shared
    between processes with the student's, and are not exported.

    Args:
        weight: factor of the term in the objective.

    Attributes:
        train_images: number of training images, which a memory bank needs; set before `build` where it is known.
    """

    name = "term"  # in logs, metrics and the result of a `Distiller`
    train_images: int | None = None

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @property
    def needs(self) -> Needs:
        """What the term uses of a batch."""
        return Needs()

    def extra_repr(self) -> str:
        """Return the settings, which `repr` shows beside the submodules."""
        return ", ".join(
            f"{name}={value!r}"
            for name, value in sorted(vars(self).items())
            if isinstance(value, bool | int | float | str | dict)
            and not name.startswith("_")
            and name != "training"
        )

    def build(self, student: NetworkInfo, teacher: NetworkInfo) -> None:
        """Make the parameters that depend on the networks' shapes; called once, before the first batch."""

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the term's value, a scalar, not yet multiplied by its weight."""
        raise NotImplementedError


class CrossEntropy(Term):
    """Cross-entropy with the hard labels, mixed where the images are, and smoothed; see `losses.hard_label_loss`."""

    name = "cross_entropy"

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__(weight)
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    def weigh_classes(self, kind: Literal["balanced", "effective"], labels: Tensor, classes: int) -> None:
        """Weight the classes by the labels of the training images; see `losses.labels.class_weights`."""
        self.weighting = kind  # which `repr` shows
        self.class_weights = class_weights(kind, labels, classes)

    @property
    def needs(self) -> Needs:
        """The hard labels."""
        return Needs(labels=True)

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the loss of the labelled images of a batch; 0, with a gradient of 0, where there is none."""
        output = batch.student.logits
        assert isinstance(output, Tensor)
        return hard_label_loss(
            output,
            batch.labels,
            batch.other_labels,
            batch.lam,
            self.label_smoothing,
            self.class_weights,
        )


class LogitTerm(Term):
    """A term made of a loss on logits, such as a plain function.

    Args:
        function: ``f(student_logits, teacher_logits[, labels][, temperature], option=default)``, both logits (B, C).
        weight: factor of the term in the objective.
        temperature: None: the function's own default.
        options: the function's own keyword arguments.

    Raises:
        TutelageError: the function has no such option, or no temperature.
    """

    def __init__(
        self,
        function: LossFunction | Callable[..., Tensor],
        weight: float = 1.0,
        temperature: float | None = None,
        **options: float,
    ) -> None:
        super().__init__(weight)
        if not isinstance(function, LossFunction):
            function = LossFunction(getattr(function, "__name__", "loss"), function)
        self.function = function
        self.function.check(options)
        if temperature is not None and not self.function.uses_temperature:
            raise TutelageError(f"loss {self.function.name}: has no temperature; remove that setting")
        self.name = self.function.name
        self.temperature = self.function.temperature if temperature is None else temperature
        self.options = options

    @property
    def needs(self) -> Needs:
        """The teacher's logits, and labels where the function takes them."""
        return Needs(
            labels=self.function.needs_labels, teacher_logits=True, top_k=self.function.function is logits.kl
        )

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the loss of both networks' logits, a scalar.

        Raises:
            TutelageError: the teacher has no logits, or only the most probable ones and the loss needs all.
        """
        assert batch.teacher is not None
        student, teacher = batch.student.logits, batch.teacher.logits
        assert isinstance(student, Tensor)
        if teacher is None:
            raise TutelageError(f"loss {self.name}: needs logits, and this teacher has none")
        if isinstance(teacher, TopK):
            if not self.needs.top_k:
                raise TutelageError(
                    f"loss {self.name}: needs all of the teacher's logits; remove targets.top_k"
                )
            return logits.kl_top_k(student, teacher.indices, teacher.log_probs, self.temperature or 1.0)
        return self.function(
            student, teacher, batch.dominant_labels, temperature=self.temperature, **self.options
        )


class KL(LogitTerm):
    """Knowledge distillation (Hinton 2015); see `losses.kl`.

    The temperature is 2 by default: a teacher is so confident on its training images that at 1 its targets hardly
    differ from the labels.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(logits.kl, weight, temperature)


class StandardisedKL(LogitTerm):
    """KL between standardised logits (Sun 2024); see `losses.standardised_kl`. The authors use a weight of 9."""

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(logits.standardised_kl, weight, temperature)


class DIST(LogitTerm):
    """Relations within and between classes (Huang 2022); see `losses.dist`."""

    def __init__(
        self, weight: float = 1.0, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
    ) -> None:
        super().__init__(logits.dist, weight, temperature, beta=beta, gamma=gamma)


class DKD(LogitTerm):
    """Decoupled distillation (Zhao 2022); see `losses.dkd`."""

    def __init__(
        self, weight: float = 1.0, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
    ) -> None:
        super().__init__(logits.dkd, weight, temperature, alpha=alpha, beta=beta)


class NKD(LogitTerm):
    """Normalised distillation (Yang 2023); see `losses.nkd`."""

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__(logits.nkd, weight, temperature, gamma=gamma)


class WTTM(LogitTerm):
    """Weighted transformed teacher matching (Zheng 2024); see `losses.wttm`."""

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(logits.wttm, weight, temperature)


class MLLD(LogitTerm):
    """Relations within and between images and classes at several temperatures (Jin 2023); see `losses.mlld`.

    With several processes the batch is that of all of them.
    """

    def __init__(
        self, weight: float = 1.0, temperature: float = 4.0, classes: float = 1.0, batch: float = 1.0
    ) -> None:
        super().__init__(logits.mlld, weight, temperature, classes=classes, batch=batch)

    def forward(self, batch: TermBatch) -> Tensor:
        """Compute the loss of a batch; in a training step, of all processes' batches together."""
        student, teacher = batch.student.logits, batch.teacher and batch.teacher.logits
        if isinstance(student, Tensor) and isinstance(teacher, Tensor) and student.requires_grad:
            student, teacher = gathered(student), gathered(teacher)
            batch = replace(batch, student=Outputs(student), teacher=Outputs(teacher))
        return super().forward(batch)


class RLD(LogitTerm):
    """Refined logits: the labels correct the teacher (Sun 2025); see `losses.rld`."""

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        label_temperature: float = 1.0,
    ) -> None:
        super().__init__(
            logits.rld, weight, temperature, alpha=alpha, beta=beta, label_temperature=label_temperature
        )


class SoftCrossEntropy(LogitTerm):
    """Cross-entropy with the teacher's soft targets (Hinton 2015); see `losses.soft_cross_entropy` and `KL`."""

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(logits.soft_cross_entropy, weight, temperature)


class LogitMSE(LogitTerm):
    """Regression of the logits (Ba 2014, Kim 2021); see `losses.logit_mse`."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(logits.logit_mse, weight)


def settings_of(term: type[Term]) -> dict[str, object]:
    """Return the keyword arguments of a term's class with their defaults (`inspect.Parameter.empty` without one)."""
    parameters = inspect.signature(term).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
