"""Losses by name, in one calling form; third parties add theirs through an entry point.

A package adds a loss by naming a function in the entry point group ``tutelage.losses``::

    [project.entry-points."tutelage.losses"]
    my_loss = "my_package:my_loss"

The function's signature says everything: ``my_loss(student_logits, teacher_logits[, labels][, temperature],
option=default, ...)`` returns a scalar. A parameter ``labels`` means that the loss needs them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import logits

GROUP = "tutelage.losses"

_BUILT_IN: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        logits.kl,
        logits.standardised_kl,
        logits.dist,
        logits.dkd,
        logits.nkd,
        logits.wttm,
        logits.soft_cross_entropy,
        logits.logit_mse,
    )
}


@dataclass(frozen=True)
class Loss:
    """A loss in the common calling form, whatever its function takes."""

    name: str
    function: Callable[..., Tensor]

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        """What the function takes besides the two logits."""
        return dict(list(inspect.signature(self.function).parameters.items())[2:])

    @property
    def needs_labels(self) -> bool:
        """Whether labels must be given. Under mixup they are ``dominant_labels``: one an image."""
        return "labels" in self._parameters

    @property
    def uses_temperature(self) -> bool:
        """Whether a temperature means anything to it."""
        return "temperature" in self._parameters

    @cached_property
    def options(self) -> dict[str, float]:
        """Its own keyword arguments with their defaults."""
        common = ("labels", "temperature")
        return {name: p.default for name, p in self._parameters.items() if name not in common}

    def check(self, options: Mapping[str, float]) -> None:
        """Raise ``TutelageError`` when an option is not one of this loss's."""
        for key in options:
            if key not in self.options:
                near = _nearest(key, self.options)
                there = f"there is {_listed(self.options)}" if self.options else "it has none"
                raise TutelageError(f"loss.options.{key}: {self.name} has no such option{near}; {there}")

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        temperature: float | None = None,
        **options: float,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Logits are ``(B, C)``, ``labels`` ``(B,)`` int64 with -1 for unlabelled. Without a temperature the
        loss's own default is used; a loss that has none leaves it aside.
        """
        self.check(options)
        arguments: dict[str, object] = dict(options)
        if self.uses_temperature and temperature is not None:
            arguments["temperature"] = temperature
        if self.needs_labels:
            if labels is None:
                raise TutelageError(
                    f"loss.name: {self.name} needs labels; choose another on unlabelled images"
                )
            arguments["labels"] = labels
        return self.function(student_logits, teacher_logits, **arguments)


def names() -> list[str]:
    """All that ``get`` knows: the built-in losses and those of installed packages."""
    return sorted(_BUILT_IN.keys() | {point.name for point in entry_points(group=GROUP)})


def get(name: str) -> Loss:
    """The loss of that name; a built-in one wins over a package's. ``TutelageError`` when there is none."""
    if name in _BUILT_IN:
        return Loss(name, _BUILT_IN[name])
    for point in entry_points(group=GROUP, name=name):
        return _from_entry_point(point)
    raise TutelageError(f"loss.name: no loss {name!r}{_nearest(name, names())}; there is {_listed(names())}")


def _from_entry_point(point: EntryPoint) -> Loss:
    where = f"loss.name: {point.name} (entry point {point.value})"
    try:
        loss = Loss(point.name, point.load())
        missing = [key for key, default in loss.options.items() if default is inspect.Parameter.empty]
    except Exception as error:  # a third party's module may fail in any way while it is imported
        raise TutelageError(f"{where} cannot be loaded: {error}; mend or remove that package") from error
    if missing:
        raise TutelageError(f"{where} has options without a default: {_listed(missing)}; give them one there")
    return loss


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)
    return f", did you mean {close[0]}?" if close else ""


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
