"""Distil a big image classifier into a small one, and show with intervals what the teacher was worth.

The names here are imported when they are asked for: ``import tutelage`` is quick, and `Predictor` never imports torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.api import Advice, Result, Verdict, advise, compare, distill
    from tutelage.core.errors import TutelageError
    from tutelage.data.input_spec import InputSpec
    from tutelage.deploy.predictor import Predictor
    from tutelage.distillation.distiller import Distiller
    from tutelage.distillation.teacher import Teacher
    from tutelage.models.source import Model

# A library may set the root logger to ERROR when it is imported, as MLflow does. Warnings of this package, such as the
# name of an image that cannot be read, are for the user: so their logger has a level of its own.
if (_log := logging.getLogger(__name__)).level == logging.NOTSET:
    _log.setLevel(logging.WARNING)

__all__ = [
    "Advice",
    "Distiller",
    "InputSpec",
    "Model",
    "Predictor",
    "Result",
    "Teacher",
    "TutelageError",
    "Verdict",
    "__version__",
    "advise",
    "compare",
    "distill",
]

_PLACES = {
    "Advice": "api",
    "Distiller": "distillation.distiller",
    "InputSpec": "data.input_spec",
    "Model": "models.source",
    "Predictor": "deploy.predictor",
    "Result": "api",
    "Teacher": "distillation.teacher",
    "TutelageError": "core.errors",
    "Verdict": "api",
    "advise": "api",
    "compare": "api",
    "distill": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tutelage")
    if name not in _PLACES:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tutelage.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
