"""The tensors of a network in what trainers save: inside other dictionaries, under prefixes, beside other modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.core.errors import TutelageError

State = dict[str, Tensor]

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
)  # averaged weights first
# Parts of names that torch puts in wherever it wraps a module: compile, FSDP, activation checkpoints, Fabric.
INSERTED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
USUAL = frozenset(
    {"module", "model"}
)  # attributes that hold the network: DistributedDataParallel's, Lightning's
PROFILED = frozenset({"total_ops", "total_params"})  # buffers that thop adds to every module
COUNTER = "num_batches_tracked"  # of BatchNorm; older and other programs leave it out


def state_of(content: Any, origin: str) -> State:
    """The state dictionary of a checkpoint, also where it is an entry of another dictionary.

    Raises:
        TutelageError: there are no tensors by name.
    """
    tensors = _tensors_in(content)
    if not tensors:
        raise TutelageError(f"{origin}: holds no tensors by name; save the model's state_dict()")
    return tensors


def _tensors_in(content: Any) -> State:
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if inner := _tensors_in(content.get(key)):
            return inner
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def unwrap(tensors: State, expected: Collection[str], origin: str = "") -> State:
    """Give tensors the names that they have in a network, without those of the wrappers around it.

    Args:
        tensors: by name, as a trainer saved them: with a prefix, perhaps beside tensors of other modules.
        expected: names in the network. Where no prefix completes them all, what all names have in common is removed.
        origin: of the tensors, for the error.

    Raises:
        TutelageError: two different networks in the file would fit.
    """
    own = frozenset(part for name in expected for part in name.split("."))
    named = {_without(name, own): tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in named.items() if name.rpartition(".")[2] not in PROFILED - own}
    needed = [name for name in expected if not name.endswith(COUNTER)]
    if not needed or not named:
        return named
    prefixes = [name.removesuffix(needed[0]) for name in named if _ends(name, needed[0])]
    complete = [prefix for prefix in prefixes if all(prefix + name in named for name in needed)]
    if "" in complete:
        return named
    complete = [
        prefix for prefix in complete if "ema" in prefix.lower()
    ] or complete  # averaged weights first
    if not complete:
        return _without_common(named, expected)
    found = [_below(named, prefix) for prefix in complete]
    if any(not _equal(found[0], other) for other in found[1:]):
        raise TutelageError(
            f"{origin}: holds {len(found)} networks that would fit ({', '.join(complete[:3])}); save the "
            "state_dict() of one of them alone"
        )
    return found[0]


def _without(name: str, own: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in INSERTED - own)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _below(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _without_common(tensors: State, expected: Collection[str]) -> State:
    """Remove the first part of the names that they share, if it is a wrapper's or if then more are the network's."""
    own = set(expected)
    firsts = {name.partition(".")[0] for name in own}
    while len(shared := {name.partition(".")[0] for name in tensors}) == 1:
        (first,) = shared
        rest = _below(tensors, f"{first}.")
        wrapped = len(rest) == len(tensors) and first in USUAL and first not in firsts
        if not wrapped and len(own & rest.keys()) <= len(own & tensors.keys()):
            break
        tensors = rest
    return tensors


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
