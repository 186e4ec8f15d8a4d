"""Checkpoints under the names of other libraries: converted where timm has the architecture, otherwise recognised."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import nn

from tutelage.models.wrappings import COUNTER, State

LIBRARIES = {
    "torchvision's": r"features\.(\d|conv0|denseblock)|encoder\.layers\.encoder_layer_|stem\.\d\.weight|"
    r"conv_proj\.|trunk_output\.|inception[345]|Mixed_\d|Conv2d_1a_3x3",
    "Hugging Face transformers'": r"(\w+\.)?(embeddings|embedder|encoder\.(layers?|stages|blocks))\.",
    "OpenCLIP's": r"visual\.|logit_scale|text_projection",
    "OpenMMLab's": r"backbone\.",
    "Keras'": r".*(/|:0$)",
    "fastai's": r"0\.\d+\.",
}


def whose(tensors: State) -> str:
    """The library whose names these look like; empty where none is known."""
    for library, pattern in LIBRARIES.items():
        if any(re.match(pattern, name) for name in tensors):
            return library
    return ""


# torchvision's name of timm's architectures. Their layers come in one order, but for those of `RENAMED`.
TORCHVISION = {
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b1": "efficientnet_b1",
    "efficientnet_b2": "efficientnet_b2",
    "efficientnet_b3": "efficientnet_b3",
    "efficientnet_b4": "efficientnet_b4",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mnasnet_100": "mnasnet1_0",
    "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small",
    "convnext_base": "convnext_base",
    "convnext_large": "convnext_large",
    "densenet121": "densenet121",
    "densenet161": "densenet161",
    "densenet169": "densenet169",
    "densenet201": "densenet201",
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
}
RENAMED = {
    "vit": (
        (r"class_token", "cls_token"),
        (r"conv_proj\.", "patch_embed.proj."),
        (r"encoder\.pos_embedding", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"(.*)\.ln_(\d)\.", r"\1.norm\2."),
        (r"(.*)\.self_attention\.in_proj_", r"\1.attn.qkv."),
        (r"(.*)\.self_attention\.out_proj\.", r"\1.attn.proj."),
        (r"(.*)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
        (r"(.*)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
        (r"encoder\.ln\.", "norm."),
        (r"heads\.head\.", "head."),
    ),
    "swin": (
        (r"features\.0\.0\.", "patch_embed.proj."),
        (r"features\.0\.2\.", "patch_embed.norm."),
        (r"features\.1\.", "layers.0.blocks."),
        (r"features\.3\.", "layers.1.blocks."),
        (r"features\.5\.", "layers.2.blocks."),
        (r"features\.7\.", "layers.3.blocks."),
        (r"features\.2\.", "layers.1.downsample."),
        (r"features\.4\.", "layers.2.downsample."),
        (r"features\.6\.", "layers.3.downsample."),
        (r"(.*)\.mlp\.0\.", r"\1.mlp.fc1."),
        (r"(.*)\.mlp\.3\.", r"\1.mlp.fc2."),
        (r"head\.", "head.fc."),
    ),
}
Convert = Callable[[State], State]
VARIANCE = ".running_var"  # of BatchNorm


def torchvision_head(tensors: State, name: str) -> int | None:
    """Number of classes of a checkpoint with torchvision's names; None where it is no such checkpoint."""
    names = _torchvision_names(name)
    head = tensors.get(names[-1]) if names else None
    return None if head is None or not _has_names(tensors, names) else int(head.shape[0])


def conversions(tensors: State, module: nn.Module, name: str) -> Iterator[tuple[str, Convert]]:
    """The ways in which a checkpoint may become one of timm's, each with its description.

    Args:
        tensors: of the checkpoint, without wrappers.
        module: timm's network.
        name: its architecture.
    """
    names = _torchvision_names(name)
    if names and _has_names(tensors, names):
        kind = name.partition("_")[0]
        renamed = partial(_renamed, rules=RENAMED[kind]) if kind in RENAMED else None
        yield (
            "torchvision's names mapped",
            renamed or partial(_by_order, names=names, module=module, name=name),
        )
    for function in _filters(module):
        yield "converted by timm", partial(_filtered, function=function, module=module)


def _filters(module: nn.Module) -> list[Callable[..., State]]:
    """What timm's file of an architecture calls on published checkpoints, which also resamples position embeddings."""
    content = vars(sys.modules[type(module).__module__])
    functions = [
        value for key, value in content.items() if key.endswith("filter_fn") and inspect.isfunction(value)
    ]
    return [
        function for function in functions if list(inspect.signature(function).parameters)[1:2] == ["model"]
    ]


def _filtered(tensors: State, function: Callable[..., State], module: nn.Module) -> State:
    return dict(function(dict(tensors), module))


def _renamed(tensors: State, rules: tuple[tuple[str, str], ...]) -> State:
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(f"^{pattern}", replacement, name)
        if not name.endswith("relative_position_index"):
            found[name] = tensor
    return found


def _by_order(tensors: State, names: tuple[str, ...], module: nn.Module, name: str) -> State:
    """Tensors in torchvision's order of layers, renamed; reshaped where only one library has a convolution.

    Where torchvision's BatchNorm adds more to the variance than timm's (0.001 and 0.00001 in MobileNetV3), the
    difference becomes a part of the variance, so that the logits are the same.
    """
    expected = [item for item in module.state_dict().items() if not item[0].endswith(COUNTER)]
    network = _torchvision(name)
    found = {}
    for theirs, (ours, wanted) in zip(names, expected, strict=True):
        if list(filter((1).__ne__, tensors[theirs].shape)) != list(filter((1).__ne__, wanted.shape)):
            return {}
        found[ours] = tensors[theirs].reshape(wanted.shape)
        if network is not None and ours.endswith(VARIANCE):
            found[ours] = found[ours] + (_eps(network, theirs) - _eps(module, ours))
    return found


def _eps(network: nn.Module, variance: str) -> float:
    return float(network.get_submodule(variance.removesuffix(VARIANCE)).eps)  # type: ignore[arg-type]


def _has_names(tensors: State, names: tuple[str, ...]) -> bool:
    return {name for name in tensors if not name.endswith(COUNTER)} == set(names)


def _torchvision_names(name: str) -> tuple[str, ...]:
    """The names in torchvision's network, in its order; none where it has no such architecture."""
    network = _torchvision(name)
    return tuple(key for key in network.state_dict() if not key.endswith(COUNTER)) if network else ()


@cache
def _torchvision(name: str) -> nn.Module | None:
    """torchvision's network of one of timm's architectures, without its tensors; None where it has none."""
    theirs = TORCHVISION.get(name.partition(".")[0])
    if theirs is None:
        return None
    import torchvision  # timm needs it anyway

    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(theirs, weights=None)
    return network
