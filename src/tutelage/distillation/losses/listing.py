"""The losses that there are, as `tutelage losses` lists them."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import terms
from tutelage.distillation.losses.registry import defaults, find_term, is_built_in, names
from tutelage.distillation.losses.terms import Term

COMMON = ("weight", "temperature")
# (Hinton 2015), (Ba 2014, Kim 2021) or (Romero 2015, "FitNets"), as docstrings name a paper
PAPER = re.compile(r"\s*\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
SEE = re.compile(r"; see `.*")


@dataclass(frozen=True)
class LossEntry:
    """A loss.

    Attributes:
        name: as ``loss.name`` and ``loss.terms`` take it.
        meaning: the first sentence of its docstring.
        paper: author and year, where the docstring names them.
        needs: what it uses of a batch, such as ``the labels``.
        temperature: the default; None where it has no temperature.
        options: its own settings with their defaults; `inspect.Parameter.empty` where one must be given.
        built_in: whether it is this package's own, not one of an installed package.
    """

    name: str
    meaning: str
    paper: str
    needs: tuple[str, ...]
    temperature: float | None
    options: dict[str, Any]
    built_in: bool


def list_losses() -> list[LossEntry]:
    """Return all losses: this package's own, then those of installed packages."""
    found = [_entry(name) for name in names()]
    return sorted(found, key=lambda one: not one.built_in)


def _entry(name: str) -> LossEntry:
    try:
        found = find_term(name)
    except TutelageError as error:  # a package that is broken: the others are shown
        return LossEntry(name, str(error), "", (), None, {}, False)
    settings = defaults(found)
    document = inspect.cleandoc((found if isinstance(found, type) else found.function).__doc__ or "")
    first = " ".join(document.partition("\n\n")[0].split())
    paper = PAPER.search(first)
    meaning = SEE.sub("", PAPER.sub("", first)).partition(". ")[0].rstrip(".")
    # the authors' weight, where a loss is so small or so large that it has one
    unusual = [("weight", weight) for weight in [settings.get("weight")] if weight != 1]
    return LossEntry(
        name,
        meaning,
        paper[1] if paper else "",
        _needs(found, settings),
        settings.get("temperature"),
        {key: value for key, value in settings.items() if key not in COMMON or (key, value) in unusual},
        is_built_in(name),
    )


def _needs(found: Any, settings: dict[str, Any]) -> tuple[str, ...]:
    """Name what a term uses of a batch. A setting without a default gets a placeholder, which only names a layer."""
    given = {key: 0 for key, value in settings.items() if value is inspect.Parameter.empty}
    try:
        term: Term = found(**given) if isinstance(found, type) else terms.LogitTerm(found)
        needs = term.needs
    except Exception:  # a package's class may refuse the placeholder in any way
        return ()
    named = {
        "the teacher's logits": needs.teacher_logits,
        "the labels": needs.labels,
        "a layer of each network": max(len(needs.student_layers), len(needs.teacher_layers)) == 1,
        "layers of each network": max(len(needs.student_layers), len(needs.teacher_layers)) > 1,
        "the index of each image": needs.index,
    }
    return tuple(name for name, needed in named.items() if needed)
