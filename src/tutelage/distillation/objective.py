"""The loss of a training step: a weighted sum of terms, returned with its parts so that each can be logged."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import LossRecipe, Recipe
from tutelage.distillation.losses import CrossEntropy, LogitTerm, Term, TermBatch, make_term
from tutelage.distillation.two_heads import by_head, mixed
from tutelage.models.features import POOLED, Layer, NetworkInfo, network_info
from tutelage.models.heads import device_of
from tutelage.models.source import Model


class Objective(nn.Module):
    """The sum of weighted terms and of an optional L2-SP penalty.

    Args:
        terms: `Term` objects, or plain functions of (student logits, teacher logits), which get a weight of 1.
        l2_sp: strength of the penalty on the distance from `start` (Li et al. 2018, "Explicit inductive bias for
            transfer learning with convolutional networks").
        start: the starting parameters of the student by name; parameters that are not in it have no penalty.
        two_heads: the student's logits are (B, 2C), see `distillation.two_heads`; terms that need a teacher get those
            of the teacher's head, the others those of the labels' head.

    Raises:
        TutelageError: there is no term.
    """

    def __init__(
        self,
        terms: Sequence[Term | Callable[..., Tensor]],
        *,
        l2_sp: float = 0.0,
        start: Mapping[str, Tensor] | None = None,
        two_heads: bool = False,
    ) -> None:
        super().__init__()
        if not terms:
            raise TutelageError("loss.terms: there is no term; give at least one")
        made = [term if isinstance(term, Term) else LogitTerm(term) for term in terms]
        self.terms = nn.ModuleDict(dict(zip(_names(made), made, strict=True)))
        self.l2_sp = l2_sp
        self.start = dict(start or {})
        self.two_heads = two_heads

    @property
    def needs_teacher(self) -> bool:
        """Whether any term needs a teacher."""
        return any(term.needs.teacher for term in self._terms())

    @property
    def student_layers(self) -> tuple[Layer, ...]:
        """The layers of the student that terms compare."""
        return tuple(dict.fromkeys(layer for term in self._terms() for layer in term.needs.student_layers))

    @property
    def teacher_layers(self) -> tuple[Layer, ...]:
        """The layers of the teacher that terms compare."""
        return tuple(dict.fromkeys(layer for term in self._terms() for layer in term.needs.teacher_layers))

    @property
    def temperature(self) -> float:
        """The temperature of the first term that has one; 1 where none has."""
        found = [term.temperature for term in self._terms() if isinstance(term, LogitTerm)]
        return next((temperature for temperature in found if temperature is not None), 1.0)

    def build(self, student: NetworkInfo, teacher: NetworkInfo, train_images: int | None = None) -> None:
        """Let each term make its own parameters.

        Args:
            student: the shapes at `student_layers`.
            teacher: the shapes at `teacher_layers`.
            train_images: number of training images, which a memory bank needs; None where it is not known.
        """
        for term in self._terms():
            if train_images is not None:
                term.train_images = train_images
            term.build(student, teacher)

    def forward(self, batch: TermBatch, student: nn.Module | None = None) -> dict[str, Tensor]:
        """Compute the weighted terms by name, and their sum as ``loss``, all scalars.

        Args:
            batch: what the terms compare.
            student: needed for L2-SP only, which is on its parameters.
        """
        parts = {name: term.weight * term(self._seen_by(term, batch)) for name, term in self._named()}
        if self.l2_sp:
            assert student is not None
            parts["l2_sp"] = self.l2_sp / 2 * self._distance(student)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def on_logits(self, batch: TermBatch) -> dict[str, Tensor]:
        """Compute by name the weighted terms that need no layers, as for stored logits on val."""
        return {
            name: term.weight * term(self._seen_by(term, batch))
            for name, term in self._named()
            if not (term.needs.student_layers or term.needs.teacher_layers)
        }

    def answers(self, logits: Tensor) -> Tensor:
        """Return the student's logits (B, C): those that it has, or an equal mixture of two heads' (B, 2C)."""
        return mixed(logits) if self.two_heads else logits

    def with_one_head(self) -> Objective:
        """Return the same objective, with the same terms, for students with one head."""
        plain = copy.copy(self)
        plain.two_heads = False
        return plain

    def _seen_by(self, term: Term, batch: TermBatch) -> TermBatch:
        """Return the batch with the logits of the head that a term trains."""
        logits = batch.student.logits
        if not self.two_heads or not isinstance(logits, Tensor):
            return batch
        labels, teacher = by_head(logits)
        logits = teacher if term.needs.teacher else labels
        return replace(batch, student=replace(batch.student, logits=logits))

    def _named(self) -> list[tuple[str, Term]]:
        return [(name, term) for name, term in self.terms.items() if isinstance(term, Term)]

    def _terms(self) -> list[Term]:
        return [term for _, term in self._named()]

    def _distance(self, student: nn.Module) -> Tensor:
        squares = [
            (parameter - self.start[name]).square().sum()
            for name, parameter in student.named_parameters()
            if name in self.start and parameter.requires_grad
        ]
        # empty while only the head is trained
        return torch.stack(squares).sum() if squares else torch.zeros((), device=device_of(student))


def body_state(model: Model, state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the starting parameters for L2-SP: all of a state but the head's.

    A head is often new to the data; its start is then only a short fit, which is not worth keeping.

    Args:
        model: has the head and the names of the parameters.
        state: of its module.
        device: where the parameters go.
    """
    head = {id(parameter) for parameter in model.head_parameters()}
    body = {name for name, parameter in model.module.named_parameters() if id(parameter) not in head}
    return {name: tensor.to(device) for name, tensor in state.items() if name in body}


def terms_of(recipe: LossRecipe) -> list[Term]:
    """Make the terms that a recipe names: ``loss.terms``, or the shorthand ``loss.name`` and ``loss.label_weight``.

    Raises:
        TutelageError: a term or one of its settings is unknown.
    """
    if recipe.terms:
        return [make_term(*_one(entry, place)) for place, entry in enumerate(recipe.terms)]
    terms: list[Term] = []
    if recipe.weight:
        terms.append(_short(recipe))
    if recipe.label_weight:
        terms.append(CrossEntropy(recipe.label_weight, recipe.label_smoothing))
    return terms


def check_losses(recipe: Recipe) -> None:
    """Refuse losses that cannot be made or that lack what they need, before anything is computed.

    Raises:
        TutelageError: a term or one of its settings is unknown, a term on layers other than the pooled one is combined
            with cached targets, or two heads have one source only.
    """
    terms = terms_of(recipe.loss)
    if recipe.loss.two_heads and len({term.needs.teacher for term in terms}) < 2:
        missing = "the labels" if terms[0].needs.teacher else "a teacher"
        raise TutelageError(
            f"loss.two_heads: one head learns from the labels and one from the teacher, and no term of the loss needs "
            f"{missing}; add one, such as loss.label_weight=0.5, or use loss.two_heads=false"
        )
    layers = [layer for layer in Objective(terms).teacher_layers if layer != POOLED]
    if layers and recipe.targets.mode == "cached":
        raise TutelageError(
            f"targets.mode=cached: a cache holds logits and pooled features, and a term needs layer {layers[0]!r} of "
            "the teacher; use targets.mode=live, or the layer pooled"
        )


def check_layers(recipe: LossRecipe, student: Model, teacher: Model, train_images: int) -> None:
    """Refuse terms whose layers are not there or do not fit, before anything is trained, by building them once.

    Args:
        recipe: names the terms.
        student: has the layers of the student.
        teacher: the first teacher, which has those of the teacher.
        train_images: number of training images.

    Raises:
        TutelageError: a layer is unknown, gives no tensor, or has channels that a term cannot compare.
    """
    objective = Objective(terms_of(recipe))
    if not objective.teacher_layers:
        return
    ours, theirs = (
        network_info(model.module, layers, spec.height, spec.width, device_of(model.module))
        for model, layers, spec in (
            (student, objective.student_layers, student.input_spec),
            (teacher, objective.teacher_layers, teacher.input_spec),
        )
    )
    # projectors are drawn, and the run's random numbers stay as they are
    with torch.random.fork_rng(devices=[]):
        objective.build(ours, theirs, train_images)


def label_smoothing_of(recipe: LossRecipe) -> float:
    """Return the smoothing of the hard labels, which the control uses too."""
    return next(
        (t.label_smoothing for t in terms_of(recipe) if isinstance(t, CrossEntropy)), recipe.label_smoothing
    )


def soft_temperature(recipe: LossRecipe) -> float:
    """Return the temperature at which a recipe softens the teacher's logits."""
    return Objective(terms_of(recipe)).temperature


def _short(recipe: LossRecipe) -> Term:
    settings: dict[str, Any] = {"weight": recipe.weight, **recipe.options}
    term = make_term(recipe.name, settings, "loss.name")
    # a study may vary only the name, so a loss without a temperature ignores the recipe's
    chosen = recipe.temperature if recipe.temperature != "auto" else None
    if chosen is not None and isinstance(term, LogitTerm) and term.function.uses_temperature:
        term.temperature = chosen
    return term


def _one(entry: Mapping[str, Any], place: int) -> tuple[str, dict[str, Any], str]:
    where = f"loss.terms.{place}"
    if len(entry) != 1:
        raise TutelageError(f"{where}: write one term as {{name: {{setting: value}}}}, not {dict(entry)}")
    ((name, settings),) = entry.items()
    if not isinstance(settings, Mapping | None):
        raise TutelageError(f"{where}: write the settings of {name} as {{weight: 1}}, not {settings!r}")
    return name, dict(settings or {}), where


def _names(terms: Sequence[Term]) -> list[str]:
    """Return the name of each term; a second one of the same name gets a number."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.name] += 1
        names.append(term.name if seen[term.name] == 1 else f"{term.name}_{seen[term.name]}")
    return names
