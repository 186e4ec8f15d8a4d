"""The names that timm knows, and where the weights of each are."""

from __future__ import annotations

import fnmatch

import timm
from timm.models import PretrainedCfg

from tutelage.models.weights import has_package, is_cached


def find_names(pattern: str) -> list[str]:
    """Name the architectures that a pattern matches, in timm's order; with a dot, also those of published weights.

    Args:
        pattern: a glob such as ``efficientnet*`` where it has ``*``, ``?`` or ``[``, else a part of the name.
    """
    known = [*timm.list_models(), *(timm.list_pretrained() if "." in pattern else ())]
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return fnmatch.filter(known, glob.lower())


def published(architecture: str) -> list[str]:
    """Name the published weights of an architecture, ARCHITECTURE.TAG each."""
    found = timm.list_pretrained(f"{architecture}.*")
    return [full for full in found if full.partition(".")[0] == architecture]


def pretrained_cfg(name: str) -> PretrainedCfg:
    """Return what timm knows of the weights of a model; those of a bare name are its default ones."""
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def in_cache(name: str) -> bool:
    """Tell whether the hub's cache on this machine has the weights of a model."""
    repository = pretrained_cfg(name).hf_hub_id
    return bool(repository and is_cached(repository))


def place_of_weights(name: str) -> str:
    """Tell where the pretrained weights of a model of timm are.

    Returns:
        ``installed`` (by a package), ``cached`` (of the hub), ``.TAG cached`` (others than those that the bare name
        means), ``on the hub``, or ``none published``.
    """
    if has_package(name):
        return "installed"
    if in_cache(name):
        return "cached"
    architecture, _, tag = name.partition(".")
    others = [] if tag else [full for full in published(architecture) if in_cache(full)]
    if others:
        return f".{others[0].partition('.')[2]} cached"
    return "on the hub" if pretrained_cfg(name).has_weights else "none published"
