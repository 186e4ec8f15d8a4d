"""Resumable state in one file: tensors and a small JSON, written together or not at all.

The JSON travels in the safetensors header, so that weights, optimizer and counters can never be of
different moments, and nothing in the file can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.run import write_bytes

State = dict[str, Tensor]


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Write groups of tensors (``{"model": state_dict, ...}``) and JSON-able meta data atomically."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, state in groups.items()
        for name, tensor in state.items()
    }
    write_bytes(path, save(tensors, metadata={"tutelage": json.dumps(meta, allow_nan=False)}))


def load_checkpoint(path: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The groups and the meta data of a checkpoint.

    Raises:
        TutelageError: the file is damaged.
    """
    groups: dict[str, State] = {}
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["tutelage"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TutelageError(
            f"{path}: damaged checkpoint ({error}); remove it to train this stage again"
        ) from None
    return groups, meta


def state_of(module: nn.Module) -> State:
    """A copy of a module's state on the CPU, which later training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[State, list[list[str]]]:
    """An optimizer's tensors by ``parameter/name``, and which plain numbers have to come back as such."""
    tensors: State = {}
    numbers: list[list[str]] = []
    for parameter, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                numbers.append([str(parameter), name])
                value = torch.tensor(value, dtype=torch.float64)
            tensors[f"{parameter}.{name}"] = value
    return tensors, numbers


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: State, numbers: list[list[str]]) -> None:
    """Put `pack_optimizer`'s state back; lr and the like stay as the recipe has them."""
    plain = {tuple(entry) for entry in numbers}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.partition(".")
        entry: Any = value.item() if (parameter, name) in plain else value
        state.setdefault(int(parameter), {})[name] = entry
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
