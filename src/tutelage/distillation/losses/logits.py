"""Losses that compare the student's logits with the teacher's.

In every formula ``t`` and ``s`` are the teacher's and the student's logits, ``p(z; T) = softmax(z / T)``
and ``y`` is the label. Common to all functions:

- ``student_logits`` and ``teacher_logits`` are ``(B, C)``, of any float type; the result is a scalar,
  averaged over the batch. All is computed in float32 (float64 stays float64), also under autocast:
  it narrows products of matrices alone, for which it is taken off.
- No gradient flows to the teacher.
- Shapes that differ raise ``TutelageError``.
- Where a loss needs ``labels`` ``(B,)`` int64, rows labelled -1 are left out of the average; a batch without
  any labelled row gives 0, with a gradient of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.core.errors import TutelageError

# A row's standard deviation and a correlation's norm below these count as "constant": they bound the gradient
# of a head that starts at zero and are far below what real logits show.
_STD_FLOOR = 1e-3
_NORM_FLOOR = 1e-4

_TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5)  # of `mlld`, as multiples
_BLOCK = 1024  # images that are related to one another; all of val would take memory for its square


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Knowledge distillation (Hinton 2015): ``T² · KL(p(t; T) ‖ p(s; T))``.

    Summed over classes and averaged over the batch. T² keeps the gradient's magnitude when T changes.
    Zero when the two distributions are equal.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return temperature**2 * _kl_rows(_log_p(student, temperature), _log_p(teacher, temperature)).mean()


def standardised_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Logit standardisation (Sun 2024): ``kl`` between ``z(t)`` and ``z(s)``, ``z(x) = (x - mean) / std``.

    Mean and standard deviation are over the classes of an image, so that scale and offset of the logits
    do not matter. ``std`` is the unbiased one, as in the authors' code. They use T = 2 and a
    weight of 9. Zero when student equals teacher up to scale and offset.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return kl(_z_score(student), _z_score(teacher), temperature)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """DIST (Huang 2022): ``T² · [β · (1 - mean ρ(rows)) + γ · (1 - mean ρ(columns))]``.

    ρ is Pearson's correlation between ``p(t; T)`` and ``p(s; T)``, over the classes of an image (rows) and
    over the images of the batch for a class (columns); the latter needs a large batch. A constant row or
    column has correlation 0, so that a batch of one image adds a fixed ``γ T²``. Otherwise zero when student
    equals teacher.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    log_s, log_t = _log_p(student, temperature), _log_p(teacher, temperature)
    rows = 1 - _pearson(log_s, log_t, dim=1).mean()
    columns = 1 - _pearson(log_s, log_t, dim=0).mean()
    return temperature**2 * (beta * rows + gamma * columns)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation (Zhao 2022): ``T² · [α · KL(b(t) ‖ b(s)) + β · KL(p̂(t) ‖ p̂(s))]``.

    ``b`` is the pair (label, all others) of ``p(·; T)`` and ``p̂`` is ``p(·; T)`` over the other classes only,
    renormalised. Plain ``kl`` is the same with α = 1 and β = 1 - p_y(t; T). It is computed in log-space.
    Zero when student equals teacher.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    labels_in = _safe_labels(labels, student)
    student_pair, student_others = _split_by_label(student / temperature, labels_in)
    teacher_pair, teacher_others = _split_by_label(teacher / temperature, labels_in)
    rows = alpha * _kl_rows(student_pair, teacher_pair) + beta * _kl_rows(student_others, teacher_others)
    return temperature**2 * _labelled_mean(rows, labels)


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised distillation (Yang 2023).

    ``-p_y(t; 1) log p_y(s; 1) - γ T² Σ_{c≠y} p̂_c(t; T) log p̂_c(s; T)``, where ``p̂`` is ``p(·; T)`` over the
    classes other than the label, renormalised. It is a cross-entropy, so it is not zero when student equals
    teacher: its infimum is ``γ T²`` times the entropy of ``p̂(t; T)``, approached when the other classes are
    matched and the label's probability goes to 1.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    labels_in = _safe_labels(labels, student)
    target = _at_label(_log_p(teacher, 1.0), labels_in).exp() * _at_label(_log_p(student, 1.0), labels_in)
    _, log_s = _split_by_label(student / temperature, labels_in)
    _, log_t = _split_by_label(teacher / temperature, labels_in)
    others = (log_t.exp() * log_s).sum(dim=1)
    return _labelled_mean(-target - gamma * temperature**2 * others, labels)


def wttm(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Weighted transformed teacher matching (Zheng 2024): ``w · KL(p(t; T) ‖ p(s; 1))``.

    The weight ``w = Σ_c p_c(t; 1)^(1/T)`` is larger for flatter targets (at T above 1). Only the teacher is
    softened (the paper's power γ is 1/T); there is no T², since the student stays at 1. Zero when the
    student's logits equal ``t / T``.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    log_power = _log_p(teacher, 1.0) / temperature
    log_weight = log_power.logsumexp(dim=1, keepdim=True)
    rows = _kl_rows(_log_p(student, 1.0), log_power - log_weight)
    return (log_weight.squeeze(1).exp() * rows).mean()


def mlld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    classes: float = 1.0,
    batch: float = 1.0,
) -> Tensor:
    """Relations at several temperatures (Jin 2023, "MLLD"): ``mean_τ [kl(τ) + classes · c(τ) + batch · b(τ)]``.

    With the probabilities ``P(x)`` (B, C) at the temperature τ, ``c = ‖P(t)ᵀP(t) - P(s)ᵀP(s)‖² / C`` relates the
    classes and ``b = ‖P(t)P(t)ᵀ - P(s)P(s)ᵀ‖² / B`` the images. τ is T times 1/2, 3/4, 1, 5/4 and 3/2: the authors'
    2 to 6 at T = 4; they have the sum over τ, five times as much. They also train on a second, stronger view of each
    image, and leave out images and classes that the teacher is unsure of: neither is done here, so that a control with
    the same views is a fair one. More than 1,024 images are related in blocks of that many. Zero when student equals
    teacher.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    total = student.new_zeros(())
    for ours, theirs in zip(student.split(_BLOCK), teacher.split(_BLOCK), strict=True):
        for factor in _TEMPERATURES:
            log_s, log_t = _log_p(ours, factor * temperature), _log_p(theirs, factor * temperature)
            p_s, p_t = log_s.exp(), log_t.exp()
            with full_precision(ours):
                by_class = (p_t.mT @ p_t - p_s.mT @ p_s).square().sum() / student.shape[1]
                by_image = (p_t @ p_t.mT - p_s @ p_s.mT).square().sum() / len(ours)
            alone = (factor * temperature) ** 2 * _kl_rows(log_s, log_t).mean()
            total = total + len(ours) * (alone + classes * by_class + batch * by_image)
    return total / (len(student) * len(_TEMPERATURES))


def rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    label_temperature: float = 1.0,
) -> Tensor:
    """Refined logits (Sun 2025, "RLD"): ``α τ² · KL(b_m(t) ‖ b_y(s)) + β T² · KL(p̂(t) ‖ p̂(s))``.

    The labels correct a teacher that is wrong. ``b_m(t)`` is the pair (most probable class, all others) of the teacher
    and ``b_y(s)`` the pair (label, all others) of the student, both at τ = `label_temperature`: the student is to be as
    sure of the label as the teacher is of its answer. ``p̂`` is ``p(·; T)`` over the classes whose logit of the teacher
    is below that of the label, renormalised: classes that the teacher wrongly puts first teach nothing. An image that
    has no such class has no second part. Zero when student equals teacher and the teacher is right.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    if student.shape[1] == 1:
        return 0 * student.sum()
    labels_in = _safe_labels(labels, student)
    student_pair, _ = _split_by_label(student / label_temperature, labels_in)
    teacher_pair, _ = _split_by_label(teacher / label_temperature, teacher.argmax(dim=1))
    left_out = teacher >= teacher.gather(1, labels_in.unsqueeze(1))
    nothing_left = left_out.all(dim=1, keepdim=True)
    hidden = left_out & ~nothing_left  # a softmax over no class at all would not be a number
    log_s, log_t = (_log_p(x.masked_fill(hidden, -math.inf), temperature) for x in (student, teacher))
    log_s, log_t = (x.masked_fill(left_out, 0) for x in (log_s, log_t))
    others = (log_t.exp() * (log_t - log_s)).sum(dim=1)
    rows = (
        alpha * label_temperature**2 * _kl_rows(student_pair, teacher_pair) + beta * temperature**2 * others
    )
    return _labelled_mean(rows, labels)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's soft targets (Hinton 2015): ``-T² Σ_c p_c(t; T) log p_c(s; T)``.

    ``kl`` plus a constant, with the same gradient. Its minimum, when student equals teacher, is T² times the
    entropy of ``p(t; T)``.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    log_s, log_t = _log_p(student, temperature), _log_p(teacher, temperature)
    return -(temperature**2) * (log_t.exp() * log_s).sum(dim=1).mean()


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Regression of the logits (Ba 2014, Kim 2021): the mean of ``(s - t)²`` over batch and classes.

    The offset of the logits, which softmax does not see, is matched too. For logits of mean zero, ``kl``
    tends to half of this as T grows (Hinton 2015). Zero when student equals teacher.
    """
    return F.mse_loss(*_pair(student_logits, teacher_logits))


def kl_top_k(student_logits: Tensor, indices: Tensor, log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """``kl`` to a teacher of which only the k largest probabilities were kept: ``T² · KL`` over k + 1 events.

    ``indices`` ``(B, k)`` int64 are distinct classes in each row and ``log_probs`` ``(B, k)`` their
    log-probabilities at the temperature ``T`` used here. The remaining probability is one event, compared with
    the student's probability of all other classes together. Never more than the full ``kl`` (data processing
    inequality), and equal to it when k = C.
    """
    student = _log_p(widen(student_logits), temperature)
    kept = widen(log_probs.detach())
    if kept.shape != indices.shape or kept.shape[0] != student.shape[0] or kept.shape[1] > student.shape[1]:
        raise TutelageError(
            f"top-k targets {tuple(indices.shape)} and {tuple(kept.shape)} do not fit "
            f"student logits {tuple(student.shape)}: they must be (batch, k) with k at most the classes"
        )
    log_s = student.gather(1, indices)
    if kept.shape[1] < student.shape[1]:
        rest = 1 - kept.exp().sum(dim=1, keepdim=True)
        kept = torch.cat([kept, rest.clamp_min(torch.finfo(rest.dtype).tiny).log()], dim=1)
        others = student.scatter(1, indices, -math.inf)
        log_s = torch.cat([log_s, others.logsumexp(dim=1, keepdim=True)], dim=1)
    # In a half-precision cache the sum is not quite 1; normalised, the minimum of the KL stays 0.
    return temperature**2 * _kl_rows(log_s, kept.log_softmax(dim=1)).mean()


def mean_teacher_logits(teacher_logits: Sequence[Tensor]) -> Tensor:
    """Combine several teachers: the log of the mean of their probabilities; each ``(B, C)``, as is the result.

    The log-probabilities serve as logits. The mean is taken at temperature 1, so that each teacher counts by its
    probabilities and not by the scale of its logits; a loss's own temperature then softens the mean
    (``p̄^(1/T)``, renormalised). The mean of one teacher is its own distribution.
    """
    if not teacher_logits:
        raise TutelageError("the mean over teachers needs the logits of at least one teacher")
    shapes = sorted({tuple(logits.shape) for logits in teacher_logits})
    if len(shapes) > 1:
        raise TutelageError(f"teachers' logits differ in shape, {shapes}: all must have the same classes")
    log_p = torch.stack([_log_p(widen(logits), 1.0) for logits in teacher_logits])
    return log_p.logsumexp(dim=0) - math.log(len(teacher_logits))


def widen(x: Tensor) -> Tensor:
    """Convert to the precision in which losses are computed: float32, or float64 where given."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context manager that takes autocast off on a tensor's device: it would narrow products of matrices."""
    return torch.autocast(x.device.type, enabled=False)


def _pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise TutelageError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "must both be (batch, classes): give both models heads over the same classes"
        )
    return widen(student_logits), widen(teacher_logits.detach())


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits / temperature, dim=1)


def _kl_rows(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)


def _z_score(logits: Tensor) -> Tensor:
    variance, mean = torch.var_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (variance + _STD_FLOOR**2).sqrt()


def _pearson(log_a: Tensor, log_b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of exp(a) and exp(b) along ``dim``, without underflow.

    Correlation does not depend on scale, so each vector is scaled to a maximum of 1 before it leaves log-space:
    a class that is improbable in the whole batch then keeps its correlation instead of underflowing.
    """
    centred = []
    for log_x in (log_a, log_b):
        x = (log_x - log_x.detach().amax(dim, keepdim=True)).exp()
        centred.append(x - x.mean(dim, keepdim=True))
    a, b = centred
    # clamped, since an added floor would keep the correlation of equal vectors below 1
    square_norms = [x.square().sum(dim).clamp_min(_NORM_FLOOR**2) for x in centred]
    return (a * b).sum(dim) / (square_norms[0] * square_norms[1]).sqrt()


def _safe_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels that can index: unlabelled rows get class 0, and are left out of the mean afterwards."""
    if labels.shape != logits.shape[:1]:
        raise TutelageError(
            f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: give one label for each row"
        )
    return labels.clamp_min(0)


def _at_label(x: Tensor, labels: Tensor) -> Tensor:
    return x.gather(1, labels.unsqueeze(1)).squeeze(1)


def _split_by_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (label, all others) ``(B, 2)``, and of the others among themselves ``(B, C - 1)``."""
    label = labels.unsqueeze(1)
    position = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(1, position + (position >= label))
    pair = torch.cat([logits.gather(1, label), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)


def _labelled_mean(rows: Tensor, labels: Tensor) -> Tensor:
    labelled = labels >= 0
    return (rows * labelled).sum() / labelled.sum().clamp_min(1)
