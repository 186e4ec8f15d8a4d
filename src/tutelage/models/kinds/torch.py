"""A user's own function that makes a network: ``torch:package.module:factory``, with ``@FILE`` for weights.

It runs code of the user's, see `tutelage.core.code`.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.core.code import refuse_unnamed
from tutelage.core.errors import TutelageError, one_line
from tutelage.models.kinds.names import split_weights
from tutelage.models.source import Model


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Call a function, which returns an `nn.Module` with a ``pretrained_cfg``, or a `Model` (see `Model.of`).

    The function takes no arguments. Modules of the current folder can be imported.

    Raises:
        TutelageError: it may not be run, cannot be imported or fails, or what it returns is no model.
    """
    reference, source = split_weights(where)
    module_name, colon, function = reference.partition(":")
    if not colon or not module_name or not function.isidentifier():
        raise TutelageError(
            f"model 'torch:{where}': write torch:package.module:function, such as torch:my_models:make_teacher"
        )
    refuse_unnamed(reference)
    made = _call(reference, module_name, function)
    model = _model_of(reference, made)
    if source == "none":
        raise TutelageError(
            f"model 'torch:{where}': which weights are random is known to the function alone; leave @none out"
        )
    if source is not None:
        model = model.reload(Path(source))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)


def _call(reference: str, module_name: str, function: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), function)()
    except Exception as error:  # the user's own code may raise anything
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise TutelageError(
            f"model torch:{reference}: {reason}; it must be a function without arguments in an importable module"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _model_of(reference: str, made: Any) -> Model:
    if isinstance(made, nn.Module):
        made = Model.of(made)
    if not isinstance(made, Model):
        raise TutelageError(
            f"model torch:{reference}: returns {type(made).__name__}; return an nn.Module or a tutelage Model"
        )
    return replace(made, name=f"torch:{reference}")
