"""The kinds of values that keys of a recipe have, and the base of its components."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and PyTorch both take
Pixels = Annotated[int, Field(ge=16)]


def _as_text(value: Any) -> Any:
    """Of what YAML makes of an unquoted text, a whole number still says how it was written; others do not."""
    if isinstance(value, bool | float):
        kind = "a truth value" if isinstance(value, bool) else "a number"
        raise ValueError(f"YAML reads this text as {kind} ({value}); put it in quotes")
    return str(value) if isinstance(value, int) else value


# may be written without quotes where it is a whole number
Text = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int)]

# words that a number may be written as, so that the key stays a number
AUTO = -1  # `auto`: a run chooses for itself
RANGE = -2  # `range`: a learning rate range test chooses
OUT_OF_RANGE = "number_or_word"  # pydantic's kind of error for a number that is too small


def _or_word(
    kind: Any, least: float, words: dict[str, int], below: float | None = None
) -> tuple[BeforeValidator, PlainSerializer]:
    """Let a number of at least `least` also be written as one of some words, each kept as a negative number."""
    named = {number: word for word, number in words.items()}

    def read(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return words[value]
        if isinstance(value, bool) or (
            isinstance(value, int | float) and not least <= value < (below or math.inf)
        ):
            bound = f"of at least {least:g}" if kind is int else "above 0"
            bound += f" and below {below:g}" if below else ""
            wanted = f"a number {bound} or {' or '.join(words)}"
            raise PydanticCustomError(OUT_OF_RANGE, "{wanted}", {"wanted": wanted})
        return value

    def write(value: float) -> Any:
        return named[int(value)] if value in named else kind(value)

    number = Annotated[kind, Field(ge=least) if kind is int else Field(gt=0, lt=below)]
    written = number | Literal[*words]  # type: ignore[valid-type]
    return BeforeValidator(read, json_schema_input_type=written), PlainSerializer(write)


_BATCH_SIZE = _or_word(int, 2, {"auto": AUTO})
_EPOCHS, _FIT_EPOCHS = _or_word(int, 1, {"auto": AUTO}), _or_word(int, 0, {"auto": AUTO})
_RATE = _or_word(float, 1e-12, {"auto": AUTO})
_TESTED_RATE = _or_word(float, 1e-12, {"auto": AUTO, "range": RANGE})
_PART = _or_word(float, 1e-12, {"auto": AUTO}, below=1)
BatchSize = Annotated[int, *_BATCH_SIZE]
Epochs = Annotated[int, *_EPOCHS]
FitEpochs = Annotated[int, *_FIT_EPOCHS]
Rate = Annotated[float, *_RATE]
TestedRate = Annotated[float, *_TESTED_RATE]
Part = Annotated[float, *_PART]


class Component(BaseModel):
    """Base of every part of a recipe: frozen, unknown keys refused.

    The text below each field is its description: what `tutelage recipe` and the JSON schema show.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
