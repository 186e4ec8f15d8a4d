"""Counts where the host reads a value of a tensor, for which it would wait on a GPU."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# operations whose result, or its size, the host has to know; on CUDA they wait for all queued work
READ = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class _Reads(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READ or masks:
            self.found[f"{name} in {_place()}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the reads by operation and place in the code, within the `with`."""
    found: Counter[str] = Counter()
    tolist = torch.Tensor.tolist

    def seen(self: torch.Tensor) -> Any:
        found[f"tolist in {_place()}"] += 1
        return tolist(self)

    torch.Tensor.tolist = seen  # of several values, it is no operation on a CPU
    try:
        with _Reads(found):
            yield found
    finally:
        torch.Tensor.tolist = tolist


def _place() -> str:
    lines = [frame for frame in traceback.extract_stack() if "/tutelage/" in frame.filename]
    return f"{lines[-1].filename.rpartition('/tutelage/')[2]}:{lines[-1].lineno}" if lines else "elsewhere"
