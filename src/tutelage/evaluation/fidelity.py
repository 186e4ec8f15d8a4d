"""How closely a student follows its teacher: what can be measured where the images have no labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.evaluation.roles import Role

FIDELITY = "fidelity"  # the metric of model selection where val has no labels
NO_LABELS = "the test images have no labels"


@dataclass(frozen=True)
class Fidelity:
    """A student against its teacher, on n images.

    Attributes:
        agreement: images on which both give the same class first, in percent.
        kl: mean KL from the teacher's probabilities to the student's in nats, at T=1; 0 where they are equal, NaN
            where a logit is not finite.
        n: images.
    """

    agreement: float
    kl: float
    n: int


def fidelity(student: Tensor, teacher: Tensor) -> Fidelity:
    """Compare logits (N, C) with a teacher's, on the same images.

    Agreement and fidelity say how well the student copies its teacher, not how good either is (Stanton et al. 2021,
    "Does knowledge distillation really work?").
    """
    ours, theirs = student.float().log_softmax(1), teacher.float().log_softmax(1)
    kl = torch.sum(theirs.exp() * (theirs - ours), 1).mean().item()
    same = (ours.argmax(1) == theirs.argmax(1)).sum().item()
    return Fidelity(100 * same / len(ours), max(kl, 0.0), len(ours))  # in this order, NaN stays NaN


def unlabelled_verdict(found: Mapping[str, Fidelity], kept: str) -> dict[str, Any]:
    """The verdict of a run whose test images have no labels, for comparison.json: it claims no accuracy.

    Args:
        found: start and distilled student against the teacher, on test.
        kept: name of the candidate that was kept.
    """
    start, distilled = found[Role.START], found[Role.DISTILLED]
    who = (
        "the start, which no trained candidate beat on val,"
        if kept == "start"
        else f"the kept student ({kept})"
    )
    return {
        "sentence": (
            f"No labels: nothing is claimed about accuracy. On {distilled.n:,} test images, {who} agrees with the "
            f"teacher on {distilled.agreement:.2f}% (its start: {start.agreement:.2f}%); the mean KL from teacher to "
            f"student is {distilled.kl:.3f} nats (start: {start.kl:.3f})."
        ),
        "outcome": None,
        "against": None,
        "pairs": [],
    }
