"""Teachers and students: any timm model, named ``NAME@WEIGHTS``.

``efficientvit_b1`` takes an installed package's weights, else the hub's; ``efficientvit_b1@none`` random
ones; ``efficientvit_b1@path/to/file.safetensors`` (or ``.pth``) a checkpoint's.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import PretrainedCfg
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.source import Model
from tutelage.models.weights import Weights, fit, load_from_hub, read_file, read_package, save_weights, unwrap

__all__ = ["Model", "load_model", "replace_head", "save_weights", "set_resolution"]


def load_model(spec: str, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load a model by NAME@WEIGHTS.

    Args:
        spec: timm's name, and after ``@`` ``none`` or a file; without ``@``, a package or the hub.
        num_classes: where it differs from the weights' head, a new head of that size is put on. Random
            weights are drawn from torch's global generator.
        dropout: in the head; None: the architecture's own.

    Raises:
        TutelageError: unknown name, unreachable hub, missing, damaged or unfitting file.
    """
    name, at, source = spec.partition("@")
    if at and not source:
        raise TutelageError(f"model {spec!r}: write a file, or none, after the @")
    _check_name(name)
    if source == "none":
        return _random(spec, name, num_classes, dropout)
    weights = read_file(Path(source)) if at else read_package(name)
    model = _with_weights(spec, name, weights, dropout) if weights else _from_hub(spec, name, dropout)
    if num_classes is None or num_classes == model.num_classes:
        return model
    return _with_new_head(model, num_classes, dropout, class_ids=None)


def replace_head(model: Model, class_ids: Sequence[str], dropout: float | None = None) -> Model:
    """The same model with a new, random head for these classes (drawn from torch's global generator).

    Without `dropout` the model's own stays.
    Layers below the last linear one keep their weights. A resolution that was set on a model with a fixed one
    is to be set again.
    """
    return _with_new_head(model, len(class_ids), dropout, class_ids=tuple(class_ids))


def set_resolution(model: Model, resolution: int) -> Model:
    """The model at another square resolution in pixels; transformers get their position embeddings resampled.

    The module is changed in place.

    Raises:
        TutelageError: the architecture cannot work at it.
    """
    resize = getattr(model.module, "set_input_size", None)
    try:
        if callable(resize):
            resize(img_size=(resolution, resolution))
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise TutelageError(f"{model.spec}: cannot work at {resolution} px ({error})") from None
    return replace(model, input_spec=model.input_spec.at(resolution))


def _check_name(name: str) -> None:
    """Refuse what timm does not know, naming the nearest that it does."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.0)[0]
        raise TutelageError(f"unknown model {name!r}; did you mean {nearest!r}?")
    known = [
        full for full in timm.list_pretrained(f"{architecture}.*") if full.partition(".")[0] == architecture
    ]
    if tag and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0) or [architecture]
        raise TutelageError(f"unknown weights {tag!r} of model {architecture!r}; did you mean {near[0]!r}?")


def _pretrained_cfg(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _build(
    name: str, *, pretrained: bool = False, num_classes: int | None, dropout: float | None
) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout}
    return timm.create_model(
        name, pretrained=pretrained, **{k: v for k, v in options.items() if v is not None}
    )


def _ready(module: nn.Module) -> nn.Module:
    return module.float().eval().to(memory_format=torch.channels_last)


def _random(spec: str, name: str, num_classes: int | None, dropout: float | None) -> Model:
    module = _build(name, num_classes=num_classes, dropout=dropout)
    return _model(spec, name, module, "random", pretrained=False)


def _from_hub(spec: str, name: str, dropout: float | None) -> Model:
    repository = _pretrained_cfg(name).hf_hub_id
    module = load_from_hub(
        name, lambda: _build(name, pretrained=True, num_classes=None, dropout=dropout), repository
    )
    return _model(spec, name, module, f"hub {repository or name}", pretrained=True)


def _with_weights(spec: str, name: str, weights: Weights, dropout: float | None) -> Model:
    saved_from = weights.metadata.get("timm", name)
    if saved_from.partition(".")[0] != name.partition(".")[0]:
        raise TutelageError(
            f"{weights.origin}: was saved from {saved_from}, not {name}; write {saved_from}@..."
        )
    if not weights.ordered:
        skeleton = _names_of(name)
        weights = replace(weights, tensors=unwrap(weights.tensors, skeleton))
    module = _build(name, num_classes=_head_size(name, weights), dropout=dropout)
    _resize(module, weights)
    fit(module, weights)
    return _with_metadata(_model(spec, name, module, weights.origin, pretrained=True), weights)


@cache
def _names_of(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(_build(name, num_classes=None, dropout=None).state_dict())


def _head_size(name: str, weights: Weights) -> int | None:
    """Classes of a checkpoint, read from its classifier; None (the architecture's own) where it has none."""
    if weights.ordered:
        return None
    for layer in _classifiers(name):
        head = weights.tensors.get(f"{layer}.weight")
        if head is not None:
            return int(head.shape[0])
    return None


def _classifiers(name: str) -> tuple[str, ...]:
    layers = _pretrained_cfg(name).classifier or ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _model(spec: str, name: str, module: nn.Module, origin: str, *, pretrained: bool) -> Model:
    class_ids, class_names = _imagenet_classes(int(module.num_classes))  # type: ignore[arg-type]
    return Model(
        spec=spec,
        name=name,
        module=_ready(module),
        input_spec=InputSpec.of(resolve_data_config({}, model=module)),
        class_ids=class_ids,
        class_names=class_names,
        origin=origin,
        pretrained=pretrained,
    )


@cache
def _imagenet_classes(size: int) -> tuple[tuple[str, ...], tuple[str, ...]] | tuple[None, None]:
    """WordNet ids and names of the ImageNet head of this size."""
    subset = infer_imagenet_subset({"num_classes": size})
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    return tuple(info.label_names()), tuple(map(str, info.label_descriptions()))


def _with_metadata(model: Model, weights: Weights) -> Model:
    """Classes and input as a tutelage file has them."""
    stored = weights.metadata
    if "timm" not in stored:
        return model
    try:
        ids, names = (json.loads(stored.get(key, "null")) for key in ("class_ids", "class_names"))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(weights, error) from None
    spec = _stored_input(weights) or model.input_spec
    if ids is not None and len(ids) != model.num_classes:
        raise TutelageError(f"{weights.origin}: names {len(ids)} classes, its head has {model.num_classes}")
    return replace(
        model,
        input_spec=spec,
        class_ids=tuple(ids) if ids else None,
        class_names=tuple(names) if names else None,
    )


def _with_new_head(
    model: Model, num_classes: int, dropout: float | None, class_ids: tuple[str, ...] | None
) -> Model:
    """Rebuilt rather than reset: only a constructor knows where an architecture has its dropout."""
    kept_dropout = getattr(model.module, "drop_rate", None)  # the model may have been loaded with another
    module = _build(model.name, num_classes=num_classes, dropout=kept_dropout if dropout is None else dropout)
    last = tuple(f"{layer}." for layer in _classifiers(model.name))
    kept = {key: value for key, value in model.module.state_dict().items() if not key.startswith(last)}
    head = {key: value for key, value in module.state_dict().items() if key.startswith(last)}
    module.load_state_dict(kept | head)
    return replace(model, module=_ready(module), class_ids=class_ids, class_names=None)


def _stored_input(weights: Weights) -> InputSpec | None:
    """How a tutelage file's model wants its pictures."""
    if not {"timm", "input"} <= weights.metadata.keys():
        return None
    try:
        return InputSpec.from_dict(json.loads(weights.metadata["input"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(weights, error) from None


def _damaged(weights: Weights, error: Exception) -> TutelageError:
    return TutelageError(f"{weights.origin}: its metadata is damaged ({error})")


def _resize(module: nn.Module, weights: Weights) -> None:
    """Position embeddings are of one resolution: that which they were saved at."""
    spec, resize = _stored_input(weights), getattr(module, "set_input_size", None)
    if spec is None or not callable(resize):
        return
    try:
        resize(img_size=(spec.height, spec.width))
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(weights, error) from None
