"""The head of a network: the layer that gives its logits, found and replaced in any module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from tutelage.core.errors import TutelageError


def head_layers(module: nn.Module, num_classes: int) -> list[nn.Module]:
    """Find the layers that make up the head of a network.

    Args:
        module: timm's networks name their heads (``get_classifier``). In others the head is the last linear layer or
            1x1 convolution with as many outputs as there are classes.
        num_classes: outputs of the head.

    Returns:
        Mostly one layer, several where a network has as many heads (timm's distilled transformers); none where no
        layer looks like a head.
    """
    named = getattr(module, "get_classifier", None)
    if callable(named):
        found = named()
        layers = list(found) if isinstance(found, (tuple, list)) else [found]
        layers = [
            layer
            for layer in layers
            if isinstance(layer, nn.Module) and any(True for _ in layer.parameters())
        ]
        if layers:
            return layers
    name = _last_layer(module, num_classes)
    return [] if name is None else [module.get_submodule(name)]


def replace_head(module: nn.Module, num_classes: int, new_classes: int) -> nn.Module | None:
    """Replace the head of a module in place by a new one, drawn from torch's global generator.

    Args:
        module: as in `head_layers`; timm's networks replace the head by themselves (``reset_classifier``).
        num_classes: outputs of the present head.
        new_classes: outputs of the new one.

    Returns:
        The module (a new one where the module itself is the layer); None where no layer looks like a head.
    """
    reset = getattr(module, "reset_classifier", None)
    if callable(reset):
        reset(new_classes)
        return module
    name = _last_layer(module, num_classes)
    if name is None:
        return None
    layer = _with_outputs(module.get_submodule(name), new_classes)
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
    return module


@torch.no_grad()
def zero_head(module: nn.Module, num_classes: int) -> None:
    """Set the weights of a head to zero, in place, so that it gives the same logit for all classes.

    The loss then begins at ln(classes), that of a uniform guess. Architectures initialise their heads for training
    from scratch; on the features of trained weights the loss begins far higher (8.4 instead of 1.6 in EfficientNets
    with five classes), and the first epochs only undo that.

    Args:
        module: as in `head_layers`.
        num_classes: outputs of the head.
    """
    for name in last_layers(module, num_classes):
        layer = module.get_submodule(name)
        layer.get_parameter("weight").zero_()
        if getattr(layer, "bias", None) is not None:
            layer.get_parameter("bias").zero_()


def last_layers(module: nn.Module, num_classes: int) -> list[str]:
    """Name the layers of a head that give its logits: of a head with a norm or a hidden layer, only the last one.

    Args:
        module: as in `head_layers`.
        num_classes: outputs of the head.
    """
    heads = [part for head in head_layers(module, num_classes) for part in head.modules()]
    return [
        name
        for name, layer in module.named_modules()
        if _outputs(layer) == num_classes and any(layer is part for part in heads)
    ]


@torch.no_grad()
def copy_outputs(module: nn.Module, num_classes: int, other: nn.Module, index: Sequence[int]) -> bool:
    """Give the head of another module some outputs of a head, in place, with their weights.

    Args:
        module: as in `head_layers`.
        num_classes: outputs of its head.
        other: the same network with as many outputs as there are indices.
        index: the outputs to copy, in order.

    Returns:
        Whether the heads have the same layers; otherwise nothing is copied.
    """
    names = last_layers(module, num_classes)
    if not names or names != last_layers(other, len(index)):
        return False
    rows = torch.as_tensor(index)
    for name in names:
        layer = module.get_submodule(name)
        for key, weight in other.get_submodule(name).named_parameters(recurse=False):
            weight.copy_(layer.get_parameter(key)[rows])
    return True


def logit_layer(module: nn.Module) -> str:
    """Name the layer that gives a network's logits, where the number of classes is not known.

    Args:
        module: timm's networks name their heads (``get_classifier``). In others it is the last linear layer or 1x1
            convolution.

    Raises:
        TutelageError: there is no such layer.
    """
    named = getattr(module, "get_classifier", None)
    head = named() if callable(named) else module
    if isinstance(head, (tuple, list)):  # a distilled transformer has two heads with inputs of their own
        head = head[0]
    parts = [id(part) for part in head.modules()] if isinstance(head, nn.Module) else []
    names = [
        name for name, layer in module.named_modules() if _outputs(layer) is not None and id(layer) in parts
    ]
    if not names:
        raise TutelageError(
            f"layer 'pooled': {type(module).__name__} has no linear layer or 1x1 convolution as its head; name a layer"
        )
    return names[-1]


def _last_layer(module: nn.Module, num_classes: int) -> str | None:
    names = [name for name, layer in module.named_modules() if _outputs(layer) == num_classes]
    return names[-1] if names else None


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
        return layer.out_channels
    return None


def _with_outputs(layer: nn.Module, outputs: int) -> nn.Module:
    """Make a new layer like this one, with another number of outputs."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Conv2d):
        new: nn.Module = nn.Conv2d(weight.shape[1], outputs, kernel_size=1, bias=bias)
    else:
        new = nn.Linear(weight.shape[1], outputs, bias=bias)
    return new.to(weight.device, weight.dtype)


def parameters_of(layers: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return all parameters of some layers, each once."""
    return list(dict.fromkeys(parameter for layer in layers for parameter in layer.parameters()))


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a network's tensors; the CPU where it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
