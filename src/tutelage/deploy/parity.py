"""Whether a deployed file says what the PyTorch model says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.deploy.build import Variant
from tutelage.evaluation.table import Row

TOLERANCE = 1e-3  # largest difference of a logit in float32
RELATIVE = 1e-4  # or so much of the largest logit, where logits are large


@dataclass(frozen=True)
class Parity:
    """A file against PyTorch on the same n images.

    Attributes:
        difference: of the logits, largest.
        largest: logit of PyTorch, absolute.
        agreement: images with the same class, in percent.
        n: images.
    """

    difference: float
    largest: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Checked:
    """A file, how it is run, its figures, and what speaks against it (empty: nothing)."""

    variant: Variant
    row: Row
    parity: Parity
    complaint: str

    def sentence(self, images: str) -> str:
        """What was found, in a line; images: what they are called."""
        line = (
            f"{self.row.name}: largest logit difference {self.parity.difference:.2g}, same class on "
            f"{self.parity.agreement:.2f}% of {self.parity.n:,} images ({images})"
        )
        return f"{line}; FAILED: {self.complaint}" if self.complaint else line


def parity(predictions: Tensor, truth: Tensor) -> Parity:
    """Compare logits (N, C) of a file with PyTorch's."""
    return Parity(
        difference=(predictions - truth).abs().max().item(),
        largest=truth.abs().max().item(),
        agreement=100 * (predictions.argmax(1) == truth.argmax(1)).float().mean().item(),
        n=len(truth),
    )


def complaint(variant: Variant, found: Parity, pytorch: Row, file: Row, max_drop: float) -> str:
    """Why a file is not fit to be deployed; empty where it is.

    Args:
        variant: how the file is run.
        found: against PyTorch.
        pytorch: its row, with top-1 where it could be measured.
        file: the file's row.
        max_drop: points of top-1 that the file may lose.
    """
    allowed = max(TOLERANCE, RELATIVE * found.largest)
    if not math.isfinite(found.difference):
        return "gives logits that are not finite"
    if variant.exact and found.difference > allowed:
        return f"logits differ from PyTorch's by up to {found.difference:.2g}, allowed is {allowed:.2g}"
    lost = pytorch.top1 - file.top1 if pytorch.top1 is not None and file.top1 is not None else 0.0
    if lost > max_drop:
        return (
            f"loses {lost:.2f} points of top-1 against PyTorch on {file.n:,} images, allowed is {max_drop:g}"
        )
    return ""
