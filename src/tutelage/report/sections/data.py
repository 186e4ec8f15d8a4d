"""The images that a run used, read again from where its recipe says."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4)
def splits(recipe_text: str, copies: str) -> Any:
    """Make the splits of the data as the run did.

    Args:
        recipe_text: of ``recipe.yaml``.
        copies: of held-out images that the run left out, as JSON; empty: they are looked for again.

    Raises:
        TutelageError: the recipe or the data cannot be read.
    """
    from tutelage.data.splits import make_splits

    return make_splits(recipe(recipe_text).data, json.loads(copies) if copies else None)


def recipe(text: str) -> Any:
    """Parse the text of a ``recipe.yaml``.

    Raises:
        TutelageError: a key or a value is not known.
    """
    import yaml

    from tutelage.core.recipe import parse_recipe

    return parse_recipe(yaml.safe_load(text), where="recipe.yaml")
