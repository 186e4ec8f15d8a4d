"""ONNX files of networks, for tests of teachers that another program runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn


class Takes(nn.Module):
    """A network that takes its images as another program has them, and makes them what the network takes."""

    def __init__(
        self,
        network: nn.Module,
        *,
        nhwc: bool = False,
        bgr: bool = False,
        scale: float = 1.0,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        softmax: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.nhwc, self.bgr, self.softmax = network, nhwc, bgr, softmax
        self.scale = scale
        self.mean, self.std = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))

    def forward(self, images: Tensor) -> Tensor:
        images = images.float() * self.scale
        images = images.permute(0, 3, 1, 2) if self.nhwc else images
        images = images.flip(1) if self.bgr else images
        logits = self.network((images - self.mean) / self.std)
        return logits.softmax(1) if self.softmax else logits


def write_onnx(
    network: nn.Module, path: Path, example: Tensor, metadata: dict[str, str] | None = None
) -> Path:
    """Export a network with any size of batch, in the type and the layout of an example image."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        network.eval(),
        (example.repeat(2, 1, 1, 1),),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata or {})
    onnx.save(proto, path)
    return path
