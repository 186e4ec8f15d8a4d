"""A key that is given twice in a recipe is refused: YAML would take the last one in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import load_recipe
from tutelage.core.recipe_tree import parse_override, read_yaml


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "train:\n  epochs: 3\ndata:\n  train: x\ntrain:\n  lr: 1\n",
            "line 5: 'train' is given twice, first in line 1",
        ),
        ("train:\n  epochs: 3\n  epochs: 4\n", "line 3: 'epochs' is given twice, first in line 2"),
        ("name: a\nname: a\n", "line 2: 'name' is given twice, first in line 1"),
        (
            "loss:\n  terms:\n  - kl: {weight: 1, weight: 2}\n",
            "line 3: 'weight' is given twice, first in line 3",
        ),
    ],
)
def test_a_recipe_with_a_repeated_key_is_refused(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(TutelageError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {line}")
    assert "\n" not in str(caught.value)


def test_an_override_with_a_repeated_key_is_refused() -> None:
    with pytest.raises(TutelageError, match="'epochs' is given twice"):
        parse_override("train={epochs: 1, epochs: 2}")


def test_merged_and_equal_names_at_other_places_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  x: 3\nc: {x: 4}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4}}
