"""Whether a deployed file gives the same logits as the PyTorch model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.deploy.runtimes.base import Variant
from tutelage.evaluation.table import Row

TOLERANCE = 1e-3  # largest allowed difference of a logit in float32
RELATIVE = 1e-4  # or this share of the largest logit, where logits are large
HALF = 2e-2  # in float16, this share of the largest logit, and never less than this difference


@dataclass(frozen=True)
class Parity:
    """A file compared with PyTorch on the same images.

    Attributes:
        difference: largest absolute difference of a logit.
        largest: largest absolute logit of PyTorch.
        agreement: percentage of images with the same predicted class.
        n: number of images.
    """

    difference: float
    largest: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Checked:
    """A file, how it is run, its figures, and why it should not be deployed (empty: no reason)."""

    variant: Variant
    row: Row
    parity: Parity
    complaint: str

    def sentence(self, images: str) -> str:
        """The result in one line; `images` is the name of the images."""
        line = (
            f"{self.row.name}: largest logit difference {self.parity.difference:.2g}, same class on "
            f"{self.parity.agreement:.2f}% of {self.parity.n:,} images ({images})"
        )
        return f"{line}; FAILED: {self.complaint}" if self.complaint else line


@dataclass(frozen=True)
class Inspected:
    """A file that this machine cannot run, so that nothing is claimed for it but its size and what is in it.

    Attributes:
        variant: the file.
        size_mb: in MiB.
        complaint: what is wrong with its content; empty: nothing.
    """

    variant: Variant
    size_mb: float
    complaint: str

    def sentence(self) -> str:
        """The result in one line."""
        line = f"{self.variant.file}: not run here; its input, output and weights were checked, nothing was measured"
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
    """Why a file should not be deployed; empty where nothing is wrong.

    Args:
        variant: how the file is run.
        found: the comparison with PyTorch.
        pytorch: the row of PyTorch, with top-1 where it could be measured.
        file: the row of the file.
        max_drop: points of top-1 that the file may lose.
    """
    half = variant.precision == "fp16"
    allowed = max(HALF, HALF * found.largest) if half else max(TOLERANCE, RELATIVE * found.largest)
    if not math.isfinite(found.difference):
        return "gives logits that are not finite"
    if (variant.exact or half) and found.difference > allowed:
        return (
            f"logits differ from PyTorch's by up to {found.difference:.2g}; at most {allowed:.2g} is allowed"
        )
    lost = pytorch.top1 - file.top1 if pytorch.top1 is not None and file.top1 is not None else 0.0
    if lost > max_drop:
        return f"loses {lost:.2f} points of top-1 against PyTorch on {file.n:,} images; at most {max_drop:g} is allowed"
    return ""
