"""torchvision's classifiers: ``torchvision:resnet50``, with ``@none`` or ``@FILE`` for other weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.data.input_spec import InputSpec
from tutelage.models.kinds.names import split_weights
from tutelage.models.source import Model, stored_classes
from tutelage.models.timm import imagenet_classes
from tutelage.models.weights import read_file

HEADS = ("classifier", "fc", "head", "heads")  # attributes that hold the head


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load a classifier of torchvision with its newest published weights, a file's, or random ones.

    Raises:
        TutelageError: torchvision does not know the name, or the weights cannot be had or do not fit.
    """
    name, source = split_weights(where)
    known = list_models(module=torchvision.models)
    if name not in known:
        near = nearest(name, known, 0.6)
        hint = f"did you mean {near!r}?" if near else "see torchvision.models.list_models()"
        raise TutelageError(f"model 'torchvision:{where}': torchvision has no classifier {name!r}; {hint}")
    published = get_model_weights(name).DEFAULT
    ids, names = imagenet_classes(len(published.meta["categories"]))
    if source is None:
        module, origin = _published(name, published), f"torchvision's {name}.{published.name}"
    else:
        size = num_classes if source == "none" else _classes_in(Path(source))
        module = get_model(name, weights=None, **({"num_classes": size} if size else {}))
        origin = "random"
        if size not in {None, len(ids or ())}:
            ids = names = None
    _without_auxiliary(module)
    _set_dropout(module, dropout)
    model = Model.of(
        module,
        input_spec=_input_spec(published.transforms()),
        class_ids=ids,
        class_names=names,
        name=f"torchvision:{name}",
        origin=origin,
        pretrained=source is None,
    )
    if source not in {None, "none"}:
        model = model.reload(Path(str(source)))
        if (
            model.class_ids is None and ids and names
        ):  # a head of this size may be ImageNet's, or a user's own
            model = replace(model, presumed=(ids, names))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)


def _published(name: str, weights: Any) -> nn.Module:
    try:
        module: nn.Module = get_model(name, weights=weights)
    except (URLError, OSError, RuntimeError) as error:
        raise TutelageError(
            f"torchvision:{name}: its weights cannot be fetched from {weights.url} ({one_line(error)[:100]}); use "
            f"torchvision:{name}@FILE for a checkpoint, or torchvision:{name}@none for random weights"
        ) from None
    return module


def _classes_in(path: Path) -> int | None:
    """Return the number of outputs of a checkpoint's head; None where it is to be found out while loading."""
    weights = read_file(path)
    if stored := stored_classes(weights, "class_ids"):
        return len(stored)
    matrices = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if {*HEADS} & {*name.split(".")} and name.endswith(".weight") and tensor.ndim in {2, 4}
    }
    return int(list(matrices.values())[-1].shape[0]) if matrices else None


def _without_auxiliary(module: nn.Module) -> None:
    """Remove the additional classifiers of GoogLeNet and Inception, which give several outputs in training."""
    if getattr(module, "aux_logits", False):
        module.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)


def _set_dropout(module: nn.Module, rate: float | None) -> None:
    heads = [getattr(module, name) for name in HEADS if hasattr(module, name)]
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Dropout)]
    if rate is not None and layers:
        layers[-1].p = rate


def _input_spec(transform: Any) -> InputSpec:
    """Return the input that the weights' own transform makes."""
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    share = crop / resize
    if math.floor(crop / share) < resize:  # rounding must not make the resized image a pixel smaller
        share = math.nextafter(share, 0)
    return InputSpec(
        crop,
        crop,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        crop_pct=share,
        interpolation=transform.interpolation.value,
    )
