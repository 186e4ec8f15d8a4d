"""Two heads on one body: one learns from the labels, the other from the teacher, and one mixed head is kept.

While a student is trained, its head has twice as many outputs: (B, 2C), first the logits of the labels' head and then
those of the teacher's head. So an optimizer, a moving average, `DistributedDataParallel` and a checkpoint see an
ordinary network. Both heads are linear in the same features, so that mixed logits are the logits of mixed weights:
what is kept is a network of the student's own architecture, with no cost at inference.

That both sources of knowledge may need weights of their own is from "distillation tokens" (Touvron et al. 2021,
"Training data-efficient image transformers", where the answers of both heads are added).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.distillation.checkpoint import State
from tutelage.distillation.probe import can_be_probed
from tutelage.models.heads import device_of, head_layers
from tutelage.models.source import Model

SHARES = (
    0.5,
    0.25,
    0.75,
    0.0,
    1.0,
)  # of the teacher's head, as tried on val; of equal ones the first is kept
EQUAL = 0.5  # the share that is used during the training, as for the figures on val after each epoch


class TwoHeads:
    """The student with two heads, and the way from its weights to those of the student with one, and back.

    Args:
        student: with one head, which is a single linear layer. It stays as it is.

    Attributes:
        model: a copy whose head has (B, 2C) outputs; each half is a copy of the student's head.

    Raises:
        TutelageError: the head is not a single linear layer that gives the logits.
    """

    def __init__(self, student: Model) -> None:
        if not can_be_probed(student):
            raise _no_second_head(student)
        (head,) = head_layers(student.module, student.num_classes)
        doubled = [
            torch.cat([old, old]) for old in (head.get_parameter(n).detach() for n in ("weight", "bias"))
        ]
        self.model = with_wide_head(student, *doubled)
        module = self.model.module
        (head,) = head_layers(module, self.model.num_classes)
        of_head = {id(parameter) for parameter in head.parameters()}
        self.names = [name for name, parameter in module.named_parameters() if id(parameter) in of_head]
        if _outputs(self.model) != (1, 2 * student.num_classes):
            raise _no_second_head(student)

    def doubled(self, state: State) -> State:
        """Return the weights of the student with two heads that are both the head of `state`."""
        return {**state, **{name: torch.cat([state[name], state[name]]) for name in self.names}}

    def folded(self, state: State, share: float) -> State:
        """Return the weights of the student with one head, in which the teacher's head has this share (0 to 1)."""
        halves = {name: state[name].chunk(2) for name in self.names}
        return {**state, **{name: labels.lerp(teacher, share) for name, (labels, teacher) in halves.items()}}


def with_wide_head(model: Model, weight: Tensor, bias: Tensor) -> Model:
    """Return a copy of a model whose head, one linear layer, has other weights and any number of outputs.

    Args:
        model: see `probe.can_be_probed`.
        weight: (outputs, D), or (outputs, D, 1, 1) for a head that is a 1x1 convolution.
        bias: (outputs,).
    """
    wide = replace(model.copied(), head_size=len(bias))
    (head,) = head_layers(wide.module, model.num_classes)
    head.weight, head.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(bias))
    return wide


def by_head(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Split logits (B, 2C) into those of the labels' head and those of the teacher's head, both (B, C)."""
    labels, teacher = logits.chunk(2, dim=1)
    return labels, teacher


def mixed(logits: Tensor, share: float = EQUAL) -> Tensor:
    """Mix logits (B, 2C) of two heads to (B, C), in which the teacher's head has this share (0 to 1)."""
    labels, teacher = by_head(logits)
    return labels.lerp(teacher, share)


@torch.no_grad()
def _outputs(model: Model) -> tuple[int, ...] | None:
    """Return the shape of the outputs for one image; None where the network does not run."""
    spec = model.input_spec
    try:
        found = model.module(torch.zeros(1, 3, spec.height, spec.width, device=device_of(model.module)))
    except (RuntimeError, ValueError, AssertionError):  # a forward that relies on the number of classes
        return None
    return tuple(found.shape)


def _no_second_head(student: Model) -> TutelageError:
    return TutelageError(
        f"loss.two_heads: {student.spec} cannot have a second head, since its head is not one linear layer with a bias "
        "that gives the logits; use loss.two_heads=false"
    )
