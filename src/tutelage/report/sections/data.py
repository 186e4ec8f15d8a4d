"""The images that a run used, read again from where its recipe says."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4)
def splits(recipe_text: str) -> Any:
    """Make the splits of the data as the run did.

    Raises:
        TutelageError: the recipe or the data cannot be read.
    """
    from tutelage.data.splits import make_splits

    return make_splits(recipe(recipe_text).data)


def recipe(text: str) -> Any:
    """Parse the text of a ``recipe.yaml``.

    Raises:
        TutelageError: a key or a value is not known.
    """
    import yaml

    from tutelage.core.recipe import parse_recipe

    return parse_recipe(yaml.safe_load(text), where="recipe.yaml")
