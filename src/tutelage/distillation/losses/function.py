"""One calling convention for losses on logits with different parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import nearest


@dataclass(frozen=True)
class LossFunction:
    """A loss on logits, called in the same way whatever parameters its function has.

    Attributes:
        name: of the loss, for errors.
        function: ``f(student_logits, teacher_logits[, labels][, temperature], option=default, ...)``.
    """

    name: str
    function: Callable[..., Tensor]

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        """The function's parameters after the two logits."""
        return dict(list(inspect.signature(self.function).parameters.items())[2:])

    @property
    def needs_labels(self) -> bool:
        """Whether labels must be given; under mixup these are the ``dominant_labels``, one for each image."""
        return "labels" in self._parameters

    @property
    def uses_temperature(self) -> bool:
        """Whether the function has a temperature."""
        return "temperature" in self._parameters

    @property
    def temperature(self) -> float | None:
        """The function's default temperature; None where it has none."""
        parameter = self._parameters.get("temperature")
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    @cached_property
    def options(self) -> dict[str, float]:
        """The function's own keyword arguments with their defaults."""
        common = ("labels", "temperature")
        return {name: p.default for name, p in self._parameters.items() if name not in common}

    def check(self, options: Mapping[str, float]) -> None:
        """Raise ``TutelageError`` when this loss does not have one of the options."""
        for key in options:
            if key not in self.options:
                near = hint(key, self.options)
                there = f"its options are {listed(self.options)}" if self.options else "it has none"
                raise TutelageError(f"loss.options.{key}: {self.name} has no such option{near}; {there}")

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        temperature: float | None = None,
        **options: float,
    ) -> Tensor:
        """Compute the loss of a batch, a scalar.

        Logits are ``(B, C)``, ``labels`` ``(B,)`` int64 with -1 for unlabelled. Without a temperature the
        loss's own default is used; a loss without a temperature ignores it.
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


def hint(word: str, known: Iterable[str]) -> str:
    """Suggest the most similar known word, as the end of an error message; "" where nothing is known."""
    near = nearest(word, known)
    return f", did you mean {near}?" if near else ""


def listed(words: Iterable[str]) -> str:
    """Join words with commas."""
    return ", ".join(words)
