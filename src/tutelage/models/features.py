"""The outputs of layers inside a network: found by name or number, and kept while the network runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.models.heads import logit_layer

Layer = (
    str | int
)  # a module's dotted name, `POOLED`, or a place in timm's `feature_info` (negative: from the end)
POOLED = "pooled"  # what goes into the layer that gives the logits


@dataclass(frozen=True)
class NetworkInfo:
    """What a term has to know of a network before it can be built.

    Attributes:
        shapes: of one image's output at each tapped layer, without the batch: (C, H, W), (N, C) or (C,).
        prefix_tokens: number of tokens before those of the patches: class token, registers. timm's transformers
            have it as ``num_prefix_tokens``; 0 in all others.
    """

    shapes: Mapping[Layer, tuple[int, ...]] = field(default_factory=dict)
    prefix_tokens: int = 0

    def channels(self, layer: Layer) -> int:
        """Number of channels of a tapped layer."""
        shape = self.shapes[layer]
        return shape[0] if len(shape) == 3 else shape[-1]


def layer_name(module: nn.Module, layer: Layer) -> str:
    """The dotted name of a layer.

    Raises:
        TutelageError: there is no such layer; the line names the nearest one.
    """
    if isinstance(layer, int):
        return _numbered(module, layer)
    if layer == POOLED:
        return logit_layer(module)
    known = [name for name, _ in module.named_modules() if name]
    if layer not in known:
        near = difflib.get_close_matches(layer, known, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TutelageError(f"layer {layer!r}: {type(module).__name__} has no such layer{hint}")
    return layer


def run_with_features(
    module: Callable[[Tensor], Any], network: nn.Module, images: Tensor, layers: Sequence[Layer]
) -> tuple[Any, dict[Layer, Tensor]]:
    """Run a network on images (B, 3, H, W), and return its output and those of some of its layers.

    Hooks stay only while it runs, so that copies of the network that are made later carry none.

    Args:
        module: what is called: the network, or a wrapper around it.
        network: what holds the layers.
        images: normalised, on the network's device.
        layers: by name or number, or `POOLED`, which is the input of the layer that gives the logits.

    Raises:
        TutelageError: a layer is unknown, was not run, or gives something else than one tensor.
    """
    found: dict[Layer, Tensor] = {}
    channels_last = getattr(network, "output_fmt", None) == "NHWC"  # timm's Swin and its like

    def keep(layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TutelageError(f"layer {layer!r}: gives a {type(output).__name__}, not one tensor")
            found[layer] = output.permute(0, 3, 1, 2) if channels_last and output.ndim == 4 else output

        return hook

    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[POOLED] = inputs[0]

    handles = []
    for layer in layers:
        part = network.get_submodule(layer_name(network, layer))
        if layer == POOLED:
            handles.append(part.register_forward_pre_hook(keep_input))
        else:
            handles.append(part.register_forward_hook(keep(layer)))
    try:
        output = module(images)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer not in found:
            raise TutelageError(f"layer {layer!r}: the network does not run it; name another")
    return output, found


def network_info(
    network: nn.Module, layers: Iterable[Layer], height: int, width: int, device: torch.device
) -> NetworkInfo:
    """Shapes at some layers, found by running the network once on an empty image of (height, width) pixels."""
    layers = tuple(dict.fromkeys(layers))
    if not layers:
        return NetworkInfo()
    training = network.training
    network.eval()
    with torch.no_grad():
        _, found = run_with_features(
            network, network, torch.zeros(1, 3, height, width, device=device), layers
        )
    network.train(training)
    shapes = {layer: tuple(output.shape[1:]) for layer, output in found.items()}
    return NetworkInfo(shapes, int(getattr(network, "num_prefix_tokens", 0) or 0))


def _numbered(module: nn.Module, place: int) -> str:
    info = getattr(module, "feature_info", None)
    names = [entry["module"] for entry in getattr(info, "info", info) or ()]
    try:
        return str(names[place])
    except IndexError:
        there = f"0 to {len(names) - 1}" if names else "none: name the layer"
        raise TutelageError(f"layer {place}: {type(module).__name__} has {there}") from None
