"""Models by what a user writes: ``NAME@WEIGHTS`` for timm's models, ``KIND:WHERE`` for those of other libraries.

Installed packages add kinds through the entry point group ``tutelage.models``; each names a `Loader`. The weights that
a run saved of such a model are named ``KIND:WHERE@FILE.safetensors``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import load_plugin, nearest, plugin_names
from tutelage.models import kinds, timm
from tutelage.models.kinds import MODULES, READ_WEIGHTS
from tutelage.models.misnamed import NEAR
from tutelage.models.source import Loader, Model

GROUP = "tutelage.models"  # of the entry points
OBJECT = "object"  # the kind of models that a program gives as objects
_KIND = re.compile(r"([A-Za-z][\w-]*):(.*)", re.DOTALL)
_SAVED = re.compile(r"(.+)@([^@]+\.safetensors)", re.DOTALL)
_OTHER_WEIGHTS = re.compile(r"(.+)@(none|[^@]+\.(safetensors|pth|pt|bin|ckpt|tar))", re.DOTALL)


_given: dict[str, Model] = {}


def _load_given(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """A copy of a model that the running program gave; its dropout is its own."""
    if where not in _given:
        raise TutelageError(
            f"model '{OBJECT}:{where}': was given by a program as an object; call `tutelage.distill` with it again"
        )
    model = replace(_given[where], module=copy.deepcopy(_given[where].module))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)


KINDS: dict[str, Loader] = {
    "timm": timm.load_model,
    OBJECT: _load_given,
}  # built in; these win over a package's


@contextmanager
def given(models: Mapping[str, Model]) -> Iterator[None]:
    """Within it, ``object:NAME`` names these models; each load gives a copy, so that they stay as they are."""
    before = dict(_given)
    _given.update(models)
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def load_model(spec: str, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load a model.

    Args:
        spec: NAME@WEIGHTS, see `tutelage.models.timm`; or KIND:WHERE, with or without ``@FILE.safetensors``.
        num_classes: where it differs from the weights' head, a new head of that size is put on. Random weights are
            drawn from torch's global generator.
        dropout: rate in the head; None: the model's own.

    Raises:
        TutelageError: unknown kind or name, or the weights are missing, damaged or do not fit.
    """
    kind, where = _split(spec)
    if kind == "timm":
        return timm.load_model(where, num_classes=num_classes, dropout=dropout)
    saved = _SAVED.fullmatch(where)
    if saved and kind not in READ_WEIGHTS:
        model = _load(kind, spec, saved[1], None, dropout).reload(Path(saved[2]))
        if num_classes is not None and num_classes != model.num_classes:
            model = model.with_head(num_classes)
    else:
        model = _load(kind, spec, where, num_classes, dropout)
        if num_classes not in {None, model.num_classes}:
            raise TutelageError(
                f"model {spec!r}: the package of kind {kind!r} gave {model.num_classes} logits, not {num_classes}"
            )
    return replace(model, spec=spec)


def architecture(spec: str) -> str:
    """What a user wrote, without the weights: ``NAME`` or ``KIND:WHERE``. Followed by ``@FILE`` it names others."""
    kind, where = _split(spec)
    if kind == "timm":
        return where.partition("@")[0]
    saved = (_OTHER_WEIGHTS if kind in READ_WEIGHTS else _SAVED).fullmatch(where)
    return f"{kind}:{saved[1] if saved else where}"


def timm_name(spec: str) -> str | None:
    """The current name of a model of timm; None for other libraries' models.

    Raises:
        TutelageError: timm does not know the name.
    """
    kind, where = _split(spec)
    if kind != "timm":
        return None
    name, at, _ = where.partition("@")
    timm.check_name(name)
    return timm.current_name(name, own_weights=not at)


def from_scratch(spec: str) -> str:
    """The same architecture with random weights.

    Raises:
        TutelageError: it is not timm's, so that only its package knows how to name random weights.
    """
    kind, where = _split(spec)
    if kind in READ_WEIGHTS:
        return f"{architecture(spec)}@none"
    if kind != "timm":
        raise TutelageError(
            f"train.from_scratch: how random weights of {spec!r} are named is known to the package of kind {kind!r} "
            "alone; name them in student.model, and leave train.from_scratch out"
        )
    return f"{where.partition('@')[0]}@none"


def _split(spec: str) -> tuple[str, str]:
    """(kind, where)."""
    found = _KIND.fullmatch(spec)
    return (found[1], found[2]) if found else ("timm", spec)


def _load(kind: str, spec: str, where: str, num_classes: int | None, dropout: float | None) -> Model:
    known = [*KINDS, *MODULES, *plugin_names(GROUP)]
    if kind not in known:
        near = nearest(kind, known, NEAR)
        hint = f"did you mean {near!r}? Write" if near else "write"
        raise TutelageError(
            f"model {spec!r}: unknown kind {kind!r}; {hint} NAME@WEIGHTS for timm's models, such as "
            f"tf_efficientnet_lite0, or KIND:WHERE for {', '.join(known)}"
        )
    loader = KINDS.get(kind) or (
        kinds.loader(kind) if kind in MODULES else load_plugin(GROUP, kind, f"model {spec!r}")
    )
    if not callable(loader):
        raise TutelageError(
            f"model {spec!r}: its package names no function `load(where, *, num_classes, dropout)`"
        )
    model = loader(where, num_classes=num_classes, dropout=dropout)
    if not isinstance(model, Model):
        raise TutelageError(
            f"model {spec!r}: the package of kind {kind!r} gave {type(model).__name__}, not a Model"
        )
    return model
