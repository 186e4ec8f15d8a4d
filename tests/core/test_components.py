"""Each key of a recipe says what it means, where it is defined."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from tutelage.core.components import FitRecipe
from tutelage.core.recipe import Recipe


def described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Each key of a component that holds a plain value, with its description."""
    for name, field in model.model_fields.items():
        inner = type(field.get_default(call_default_factory=True))
        if issubclass(inner, BaseModel):
            assert inner.__doc__
            yield from described(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


def test_every_key_has_a_meaning() -> None:
    found = dict([*described(Recipe), *described(FitRecipe, "teacher.fit.")])
    assert {"train.epochs", "data.limit", "control", "teacher.fit", "teacher.fit.epochs"} <= found.keys()
    assert [key for key, text in found.items() if not (text or "").endswith(".")] == []
