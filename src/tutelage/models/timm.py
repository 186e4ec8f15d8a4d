"""timm's models, named ``NAME@WEIGHTS``.

``efficientvit_b1`` has the weights of an installed package, else those of the hub; ``efficientvit_b1@none`` has random
weights; ``efficientvit_b1@path/to/file.safetensors`` (or ``.pth``) has those of a checkpoint.
"""

from __future__ import annotations

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
from tutelage.core.plugins import nearest
from tutelage.data.input_spec import InputSpec
from tutelage.models.heads import zero_head
from tutelage.models.source import Model, damaged, ready, resize, stored_classes, stored_input
from tutelage.models.weights import Weights, fit, load_from_hub, read_file, read_package, unwrap


class TimmModel(Model):
    """A model that timm builds by its name: a new head comes from its constructor, which also knows the dropout."""

    def with_head(self, classes: Sequence[str] | int, dropout: float | None = None) -> Model:
        """A copy with a new head of zeros, see `models.heads.zero_head`; all else keeps its weights.

        Rebuilt rather than reset: only a constructor knows where an architecture has its dropout. A resolution that
        was set on a model with a fixed one is to be set again.

        Args:
            classes: their ids in order, or how many there are.
            dropout: rate in the head; None: the model's own.
        """
        size, ids = (classes, None) if isinstance(classes, int) else (len(classes), tuple(classes))
        if dropout is None:  # the model may have been loaded with another than the architecture's own
            dropout = getattr(self.module, "drop_rate", None)
        module = _build(self.name, num_classes=size, dropout=dropout)
        last = tuple(f"{layer}." for layer in _classifiers(self.name))
        kept = {key: value for key, value in self.module.state_dict().items() if not key.startswith(last)}
        head = {key: value for key, value in module.state_dict().items() if key.startswith(last)}
        module.load_state_dict(kept | head)
        zero_head(module, size)
        return replace(self, module=ready(module), class_ids=ids, class_names=None)

    def reload(self, path: Path) -> Model:
        """The same architecture with the weights, head, classes and input of a checkpoint.

        Raises:
            TutelageError: the file is missing or damaged, or is of another architecture.
        """
        return load_model(f"{self.name}@{path}")

    def metadata(self) -> dict[str, str]:
        """What `save_weights` stores, so that ``NAME@file`` brings back classes and input."""
        return {"timm": self.name} | self._described()


def load_model(spec: str, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load one of timm's models by NAME@WEIGHTS.

    Args:
        spec: timm's name, and after ``@`` ``none`` or a file; without ``@`` a package or the hub is used.
        num_classes: where it differs from the head of the weights, a new head of that size is put on. Random
            weights are drawn from torch's global generator.
        dropout: rate in the head; None: the architecture's own.

    Raises:
        TutelageError: the name is unknown, the hub cannot be reached, or the file is missing, damaged or of another
            architecture.
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
    return model.with_head(num_classes, dropout)


def _check_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest one that it knows."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise TutelageError(f"unknown model {name!r}; did you mean {near!r}?")
    known = [
        full for full in timm.list_pretrained(f"{architecture}.*") if full.partition(".")[0] == architecture
    ]
    if tag and name not in known:
        near = nearest(name, known) or architecture
        raise TutelageError(f"unknown weights {tag!r} of model {architecture!r}; did you mean {near!r}?")


def _pretrained_cfg(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _build(
    name: str, *, pretrained: bool = False, num_classes: int | None, dropout: float | None
) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout}
    return timm.create_model(
        name, pretrained=pretrained, **{k: v for k, v in options.items() if v is not None}
    )


def _random(spec: str, name: str, num_classes: int | None, dropout: float | None) -> TimmModel:
    module = _build(name, num_classes=num_classes, dropout=dropout)
    return _model(spec, name, module, "random", pretrained=False)


def _from_hub(spec: str, name: str, dropout: float | None) -> TimmModel:
    repository = _pretrained_cfg(name).hf_hub_id
    module = load_from_hub(
        name, lambda: _build(name, pretrained=True, num_classes=None, dropout=dropout), repository
    )
    return _model(spec, name, module, f"hub {repository or name}", pretrained=True)


def _with_weights(spec: str, name: str, weights: Weights, dropout: float | None) -> TimmModel:
    saved_from = weights.metadata.get("timm", name)
    if saved_from.partition(".")[0] != name.partition(".")[0]:
        raise TutelageError(
            f"{weights.origin}: was saved from {saved_from}, not {name}; write {saved_from}@..."
        )
    if not weights.ordered:
        skeleton = _names_of(name)
        weights = replace(weights, tensors=unwrap(weights.tensors, skeleton))
    module = _build(name, num_classes=_head_size(name, weights), dropout=dropout)
    _resized(module, weights)
    fit(module, weights)
    return _with_metadata(_model(spec, name, module, weights.origin, pretrained=True), weights)


@cache
def _names_of(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(_build(name, num_classes=None, dropout=None).state_dict())


def _head_size(name: str, weights: Weights) -> int | None:
    """Number of classes of a checkpoint, read from its classifier; None (the architecture's own) without one."""
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


def _model(spec: str, name: str, module: nn.Module, origin: str, *, pretrained: bool) -> TimmModel:
    class_ids, class_names = _imagenet_classes(int(module.num_classes))  # type: ignore[arg-type]
    return TimmModel(
        spec=spec,
        name=name,
        module=ready(module),
        input_spec=InputSpec.of(resolve_data_config({}, model=module)),
        class_ids=class_ids,
        class_names=class_names,
        origin=origin,
        pretrained=pretrained,
    )


@cache
def _imagenet_classes(size: int) -> tuple[tuple[str, ...], tuple[str, ...]] | tuple[None, None]:
    """WordNet ids and names of the ImageNet head with this number of classes."""
    subset = infer_imagenet_subset({"num_classes": size})
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    return tuple(info.label_names()), tuple(map(str, info.label_descriptions()))


def _with_metadata(model: TimmModel, weights: Weights) -> TimmModel:
    """The model with the classes and the input that a tutelage file stores."""
    if "timm" not in weights.metadata:
        return model
    ids = stored_classes(weights, "class_ids")
    if ids is not None and len(ids) != model.num_classes:
        raise TutelageError(f"{weights.origin}: names {len(ids)} classes, its head has {model.num_classes}")
    return replace(
        model,
        input_spec=stored_input(weights) or model.input_spec,
        class_ids=ids,
        class_names=stored_classes(weights, "class_names"),
    )


def _resized(module: nn.Module, weights: Weights) -> None:
    """Resize position embeddings to the resolution at which the weights were saved."""
    spec = stored_input(weights) if "timm" in weights.metadata else None
    if spec is None:
        return
    try:
        resize(module, spec)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise damaged(weights, error) from None
