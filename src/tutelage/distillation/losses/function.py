"""A loss on logits in one calling form, whatever its function takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tutelage.core.errors import TutelageError


@dataclass(frozen=True)
class LossFunction:
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

    @property
    def temperature(self) -> float | None:
        """Its own default temperature; None where it has none."""
        parameter = self._parameters.get("temperature")
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    @cached_property
    def options(self) -> dict[str, float]:
        """Its own keyword arguments with their defaults."""
        common = ("labels", "temperature")
        return {name: p.default for name, p in self._parameters.items() if name not in common}

    def check(self, options: Mapping[str, float]) -> None:
        """Raise ``TutelageError`` when an option is not one of this loss's."""
        for key in options:
            if key not in self.options:
                near = nearest(key, self.options)
                there = f"there is {listed(self.options)}" if self.options else "it has none"
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


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is nearest; "" where nothing is known."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)
    return f", did you mean {close[0]}?" if close else ""


def listed(words: Iterable[str]) -> str:
    """Words with commas between them."""
    return ", ".join(words)
