"""What a row of cached targets holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.outputs import Targets, TopK

BATCH = (
    64  # images a forward pass of the fill; blocks are multiples of it, so that a resumed fill is identical
)
BLOCK_BYTES = 2**20  # about so much is claimed, written and checked at a time
BLOCK_BATCHES = 16  # at most


@dataclass(frozen=True)
class Layout:
    """What a row holds: all logits in fp16, or the k largest log-probabilities at one temperature."""

    rows: int
    classes: int
    top_k: int | None = None
    temperature: float = 1.0

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of a row."""
        if self.top_k is None:
            return np.dtype([("values", "<f2", (self.classes,))])
        k = min(self.top_k, self.classes)
        return np.dtype(
            [("values", "<f2", (k,)), ("classes", "<u2" if self.classes <= 2**16 else "<u4", (k,))]
        )

    @property
    def block(self) -> int:
        """Rows in a block; the last one has fewer."""
        return BATCH * max(1, min(BLOCK_BATCHES, BLOCK_BYTES // (BATCH * self.dtype.itemsize)))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block)

    @property
    def view_bytes(self) -> int:
        """Size of one view of all images."""
        return self.rows * self.dtype.itemsize

    def span(self, block: int) -> range:
        """The rows of a block."""
        return range(block * self.block, min(self.rows, (block + 1) * self.block))

    def empty(self, rows: int) -> np.ndarray:
        """Rows of images that could not be decoded: NaN."""
        empty = np.zeros(rows, self.dtype)
        empty["values"] = np.nan
        return empty

    def encode(self, logits: Tensor) -> np.ndarray:
        """Rows (B,) of logits (B, C).

        Raises:
            TutelageError: a logit is not finite in fp16.
        """
        rows = np.zeros(len(logits), self.dtype)
        kept = logits.float()
        if self.top_k is not None:
            log_p = torch.log_softmax(kept / self.temperature, dim=1)
            kept, classes = log_p.topk(min(self.top_k, self.classes), dim=1)
            rows["classes"] = classes.cpu().numpy()
        rows["values"] = kept.half().cpu().numpy()
        if not np.isfinite(rows["values"]).all():
            raise TutelageError(
                "targets.mode: the teacher's logits are not finite in fp16; use targets.mode=live"
            )
        return rows

    def decode(self, rows: np.ndarray) -> Targets:
        """Rows (B,) as a loss takes them, on the CPU."""
        values = torch.from_numpy(rows["values"].astype(np.float32))
        if self.top_k is None:
            return values
        return TopK(torch.from_numpy(rows["classes"].astype(np.int64)), values)
