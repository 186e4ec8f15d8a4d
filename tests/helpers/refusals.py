"""The one line with which a data source or a model is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import open_source
from tutelage.models.registry import load_model


def source_refusal(spec: str, part: str | None = None) -> str:
    """Return the line with which `open_source` refuses a source."""
    return _line(open_source, spec, part)


def model_refusal(spec: str) -> str:
    """Return the line with which `load_model` refuses a model."""
    return _line(load_model, spec)


def _line(refuses: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(TutelageError) as caught:
        refuses(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)
