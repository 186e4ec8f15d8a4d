"""The layout of the rows of cached targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.outputs import Outputs, Targets, TopK
from tutelage.models.features import POOLED, Layer

# images in a forward pass of the fill; blocks are multiples of it, so that a resumed fill has the same batches
BATCH = 64
BLOCK_BYTES = 2**20  # about this much is claimed, written and checked at a time
BLOCK_BATCHES = 16  # at most this many batches are in a block


@dataclass(frozen=True)
class Layout:
    """The content of a row: all logits in fp16, or the k largest log-probabilities at one temperature.

    The pooled features of the teacher, what goes into the layer that gives its logits, can stand beside them.

    Attributes:
        rows: number of images.
        classes: number of logits.
        top_k: number of log-probabilities in a row; None: all logits.
        temperature: of the log-probabilities.
        pooled: number of pooled features in a row, in fp16; 0: none.
    """

    rows: int
    classes: int
    top_k: int | None = None
    temperature: float = 1.0
    pooled: int = 0

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a row."""
        pooled = [("pooled", "<f2", (self.pooled,))] if self.pooled else []
        if self.top_k is None:
            return np.dtype([("values", "<f2", (self.classes,)), *pooled])
        k = min(self.top_k, self.classes)
        places = "<u2" if self.classes <= 2**16 else "<u4"
        return np.dtype([("values", "<f2", (k,)), ("classes", places, (k,)), *pooled])

    @property
    def block(self) -> int:
        """The number of rows in a block; the last block may have fewer."""
        return BATCH * max(1, min(BLOCK_BATCHES, BLOCK_BYTES // (BATCH * self.dtype.itemsize)))

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.rows // self.block)

    @property
    def view_bytes(self) -> int:
        """The size of one view of all images in bytes."""
        return self.rows * self.dtype.itemsize

    def span(self, block: int) -> range:
        """Return the range of rows of a block."""
        return range(block * self.block, min(self.rows, (block + 1) * self.block))

    def empty(self, rows: int) -> np.ndarray:
        """Return rows for images that could not be decoded: NaN."""
        empty = np.zeros(rows, self.dtype)
        empty["values"] = np.nan
        return empty

    def encode(self, logits: Tensor, pooled: Tensor | None = None) -> np.ndarray:
        """Encode logits (B, C) and pooled features (B, D), which some layouts have, as rows (B,).

        Raises:
            TutelageError: a logit or a feature is not finite in fp16.
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
        if self.pooled:
            assert pooled is not None
            rows["pooled"] = pooled.half().cpu().numpy()
            if not np.isfinite(rows["pooled"]).all():
                raise TutelageError(
                    "targets.mode: the teacher's pooled features are not finite in fp16; use targets.mode=live"
                )
        return rows

    def decode(self, rows: np.ndarray) -> Outputs:
        """Decode rows (B,) to the teacher's outputs that losses take, on the CPU."""
        features: dict[Layer, Tensor] = {}
        if self.pooled:
            features[POOLED] = torch.from_numpy(rows["pooled"].astype(np.float32))
        return Outputs(self._targets(rows), features)

    def _targets(self, rows: np.ndarray) -> Targets:
        values = torch.from_numpy(rows["values"].astype(np.float32))
        if self.top_k is None:
            return values
        return TopK(torch.from_numpy(rows["classes"].astype(np.int64)), values)
