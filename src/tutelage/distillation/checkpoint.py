"""Checkpoints: all that a resumed stage needs, tensors and JSON, in one file that is written atomically.

The JSON is in the safetensors header, so that weights, optimizer and counters are always of the same step,
and nothing in the file can run code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import write_bytes

State = dict[str, Tensor]
OF_THE_DEVICE = {
    "fused",
    "foreach",
    "capturable",
}  # how a group's steps are computed, which a resume does not take over


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Write groups of tensors (``{"model": state_dict, ...}``) and JSON-able meta data atomically."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, state in groups.items()
        for name, tensor in state.items()
    }
    text = json.dumps(meta, allow_nan=False)
    write_bytes(path, save(tensors, metadata={"tutelage": text, "crc": str(_crc(text, tensors))}))


def load_checkpoint(path: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """Read the groups of tensors and the meta data of a checkpoint.

    Raises:
        TutelageError: the file is damaged, even if by one bit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        text = header["tutelage"]
        if header["crc"] != str(_crc(text, tensors)):
            raise ValueError("its checksum does not match")
        meta = json.loads(text)
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        reason = one_line(error)[:200]
        raise TutelageError(
            f"{path}: damaged checkpoint ({reason}); remove it to train this stage again"
        ) from None
    groups: dict[str, State] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, meta


def _crc(text: str, tensors: State) -> int:
    """Compute the CRC-32 of the meta data and of each tensor's name, dtype, shape and bytes."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def state_of(module: nn.Module) -> State:
    """Copy a module's state to the CPU, contiguous as in a checkpoint; later training does not change the copy."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """Separate an optimizer's state into its tensors and the JSON-able numbers of its state and parameter groups.

    Raises:
        TutelageError: its state holds something else, so that training could not be resumed exactly.
    """
    state = optimizer.state_dict()
    tensors: State = {}
    numbers: dict[str, dict[str, Any]] = {}
    for place, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value
            elif value is None or isinstance(value, int | float):
                numbers.setdefault(str(place), {})[name] = value
            else:
                raise TutelageError(
                    f"train.optimizer: {type(optimizer).__name__} keeps a {type(value).__name__} ({name}) that "
                    "no checkpoint can hold; use another one, such as adamw or sgd"
                )
    groups = [_numbers(group, tensors, f"group{i}") for i, group in enumerate(state["param_groups"])]
    return tensors, {"state": numbers, "groups": groups}


def _numbers(group: dict[str, Any], tensors: State, prefix: str) -> dict[str, Any]:
    """Return a group's plain numbers, and add its tensors (some optimizers count steps in one) to the others."""
    tensors |= {f"{prefix}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}
    return {k: v for k, v in group.items() if isinstance(v, int | float)}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: State, packed: Mapping[str, Any]) -> None:
    """Restore the state from `pack_optimizer`, each tensor in its parameter's memory layout."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(place): dict(entry) for place, entry in packed["state"].items()}
    groups = [
        {**group, **{k: v for k, v in packed["groups"][i].items() if k not in OF_THE_DEVICE}}
        for i, group in enumerate(optimizer.state_dict()["param_groups"])
    ]
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        if place.startswith("group"):
            groups[int(place.removeprefix("group"))][name] = value
            continue
        parameter = parameters[int(place)]
        alike = value.shape == parameter.shape and value.dtype == parameter.dtype
        state.setdefault(int(place), {})[name] = (
            torch.empty_like(parameter, device=value.device).copy_(value) if alike else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": groups})
