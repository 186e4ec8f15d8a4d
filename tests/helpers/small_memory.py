"""A machine whose memory takes so many images of a batch: networks raise what PyTorch raises there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB."
)
CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


def fits_in_each(images: Sequence[int], rank: int) -> None:
    """Let `auto` find that no more than so many images of a batch fit, in the process of a rank."""
    from tutelage.pipeline.stages import batch_size

    found = batch_size.largest_batch
    batch_size.largest_batch = lambda *given: min(found(*given), images[rank])


def takes(
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    network: type[nn.Module],
    error: RuntimeError = GPU,
    *,
    training: bool = False,
) -> list[int]:
    """Let a kind of network raise an error for batches of more images; return the sizes of all batches.

    Args:
        monkeypatch: of the test.
        images: the largest batch that fits.
        network: its class.
        error: of what is raised.
        training: evaluations always fit.
    """
    forward, sizes = network.forward, []

    def limited(self: Any, batch: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > images and (self.training or not training) and batch.device.type != "meta":
            raise type(error)(*error.args)
        return forward(self, batch, *arguments, **options)

    monkeypatch.setattr(network, "forward", limited)
    return sizes
