"""Terms by name. A package adds one by naming a `Term` or a function in the entry point group ``tutelage.losses``::

    [project.entry-points."tutelage.losses"]
    my_loss = "my_package:my_loss"

The signature of a function is all that is needed: ``my_loss(student_logits, teacher_logits[, labels][, temperature],
option=default, ...)`` returns a scalar. A parameter ``labels`` means that the loss needs labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import load_plugin, plugin_names, plugin_title
from tutelage.distillation.losses import hints, relations, terms
from tutelage.distillation.losses.contrastive import CRD
from tutelage.distillation.losses.features import FeatureMSE
from tutelage.distillation.losses.function import LossFunction, hint, listed
from tutelage.distillation.losses.review import ReviewKD
from tutelage.distillation.losses.terms import LogitTerm, Term

GROUP = "tutelage.losses"

# a term, or a plain function of logits, which needs no class of its own
_BUILT_IN: dict[str, type[Term] | Callable[..., Tensor]] = {
    "kl": terms.KL,
    "standardised_kl": terms.StandardisedKL,
    "dist": terms.DIST,
    "dkd": terms.DKD,
    "nkd": terms.NKD,
    "wttm": terms.WTTM,
    "soft_cross_entropy": terms.SoftCrossEntropy,
    "logit_mse": terms.LogitMSE,
    "cross_entropy": terms.CrossEntropy,
    "mlld": terms.MLLD,
    "rld": terms.RLD,
    "feature_mse": FeatureMSE,
    "attention_transfer": hints.AttentionTransfer,
    "vkd": hints.VkD,
    "srd": hints.SRD,
    "token_mse": hints.TokenMSE,
    "review_kd": ReviewKD,
    "ickd": relations.ICKD,
    "rkd": relations.RKD,
    "similarity_preserving": relations.SimilarityPreserving,
    "cka": relations.CKA,
    "crd": CRD,
}

LAYERS = (
    "student",
    "teacher",
)  # settings that are a layer: by default a number, but a name or a list as well


def names() -> list[str]:
    """Return the names of all terms: the built-in ones and those of installed packages."""
    return sorted({*_BUILT_IN, *plugin_names(GROUP)})


def make_term(name: str, settings: Mapping[str, Any], where: str = "loss.terms") -> Term:
    """Make a term by its name; a built-in name wins over a package's.

    Args:
        name: one of `names()`.
        settings: its keyword arguments: ``weight``, ``temperature`` and its own.
        where: key of the recipe that names it, for errors.

    Raises:
        TutelageError: there is no such term, it cannot be loaded, or a setting is unknown, missing or wrong.
    """
    found = find_term(name, where)
    parameters = defaults(found)
    if isinstance(found, LossFunction):
        return LogitTerm(found, **_numbers(settings, parameters, f"{where}: {name}"))
    for key in settings:
        if key not in parameters:
            raise TutelageError(
                f"{where}: {name} has no setting {key!r}{hint(key, parameters)}; its settings are {listed(parameters)}"
            )
    missing = [k for k, v in parameters.items() if v is inspect.Parameter.empty and k not in settings]
    if missing:
        raise TutelageError(
            f"{where}: {name} needs {listed(missing)}, such as {{{name}: {{{missing[0]}: ...}}}}"
        )
    try:
        return found(**_numbers(settings, parameters, f"{where}: {name}"))
    except (TypeError, ValueError) as error:
        raise TutelageError(f"{where}: {name} cannot be made with {dict(settings)} ({error})") from None


def is_built_in(name: str) -> bool:
    """Tell whether a loss is this package's own."""
    return name in _BUILT_IN


def find_term(name: str, where: str = "loss.terms") -> type[Term] | LossFunction:
    """Return the term or the function of a name; a built-in name wins over a package's.

    Args:
        name: one of `names()`.
        where: key of the recipe that names it, for errors.

    Raises:
        TutelageError: there is no such loss, or it cannot be loaded.
    """
    return _built_in(name) or _from_package(name, where)


def defaults(found: type[Term] | LossFunction) -> dict[str, Any]:
    """Return the settings of a term with their defaults (`inspect.Parameter.empty` where one must be given)."""
    if isinstance(found, LossFunction):
        return {"weight": 1.0, "temperature": found.temperature, **found.options}
    return terms.settings_of(found)


def _built_in(name: str) -> type[Term] | LossFunction | None:
    found = _BUILT_IN.get(name)
    if found is None or isinstance(found, type):
        return cast("type[Term] | None", found)
    return LossFunction(name, found)


def _numbers(settings: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert settings to numbers where the default is a number: YAML 1.1 reads ``1e-4`` as text.

    Raises:
        TutelageError: a setting that must be a number is not one.
    """
    found = dict(settings)
    for key, value in settings.items():
        default = defaults.get(key)
        if key in LAYERS:
            continue
        if isinstance(default, int | float) and not isinstance(default, bool):
            try:
                found[key] = float(value) if isinstance(value, str) else value + 0
            except (TypeError, ValueError):
                raise TutelageError(f"{where}: {key} must be a number, not {value!r}") from None
    return found


def _from_package(name: str, where: str) -> type[Term] | LossFunction:
    if name not in plugin_names(GROUP):
        raise TutelageError(
            f"{where}: no loss {name!r}{hint(name, names())}; available are {listed(names())}"
        )
    loaded = load_plugin(GROUP, name, where)
    if isinstance(loaded, type) and issubclass(loaded, Term):
        return loaded
    function = LossFunction(name, loaded)
    try:
        missing = [key for key, default in function.options.items() if default is inspect.Parameter.empty]
    except (TypeError, ValueError) as error:  # its signature cannot be read
        raise TutelageError(f"{where}: {plugin_title(GROUP, name)} is not a loss ({error})") from None
    if missing:
        raise TutelageError(
            f"{where}: {plugin_title(GROUP, name)} has options without a default: {listed(missing)}; "
            "give them one there"
        )
    return function
