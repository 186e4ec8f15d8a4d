"""timm's models, named ``NAME@WEIGHTS``.

``efficientvit_b1`` has the weights of an installed package, else those of the hub; ``efficientvit_b1@none`` has random
weights; ``efficientvit_b1@path/to/file.safetensors`` (or ``.pth``) has those of a checkpoint, and the classes that
``path/to/file.classes.txt`` lists, where there is such a file.
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
from timm.models._registry import _deprecated_models  # by no public function
from torch import nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.data.input_spec import InputSpec
from tutelage.models.foreign import conversions, torchvision_head
from tutelage.models.heads import last_layers, zero_head
from tutelage.models.misnamed import unknown_model
from tutelage.models.names import in_cache, pretrained_cfg, published
from tutelage.models.source import Model, damaged, ready, resize, stored_classes, stored_input
from tutelage.models.weights import (
    COUNTER,
    PACKAGES,
    Weights,
    fit,
    fits,
    has_package,
    load_from_hub,
    read_file,
    read_package,
)
from tutelage.models.wrappings import unwrap

CLASS_LIST = ".classes.txt"  # takes the place of a checkpoint's suffix


class TimmModel(Model):
    """A model that timm builds by its name: a new head comes from its constructor, which also knows the dropout."""

    def with_head(self, classes: Sequence[str] | int, dropout: float | None = None) -> Model:
        """A copy with a new head of zeros, see `models.heads.zero_head`; all else keeps its weights.

        Rebuilt rather than reset: only a constructor knows where an architecture has its dropout. A resolution that
        was set on a model with a fixed one is to be set again.

        Args:
            classes: their ids in order, or how many there are.
            dropout: rate in the head; None: the model's own.

        Raises:
            TutelageError: timm's architecture takes no head.
        """
        size, ids = (classes, None) if isinstance(classes, int) else (len(classes), tuple(classes))
        if dropout is None:  # the model may have been loaded with another than the architecture's own
            dropout = getattr(self.module, "drop_rate", None)
        module = _build(self.name, num_classes=size, dropout=dropout)
        if module.num_classes != size:
            raise TutelageError(
                f"{self.spec}: is an encoder that has no head for classes; name an architecture with one, see "
                "`tutelage models`"
            )
        # timm's configurations do not name all heads of LeViT
        last = tuple(f"{x}." for x in {*_classifiers(self.name), *last_layers(self.module, self.num_classes)})
        kept = {key: value for key, value in self.module.state_dict().items() if not key.startswith(last)}
        head = {key: value for key, value in module.state_dict().items() if key.startswith(last)}
        module.load_state_dict(kept | head)
        zero_head(module, size)
        return replace(self, module=ready(module), class_ids=ids, class_names=None, presumed=None)

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
    given, at, source = spec.partition("@")
    if at and not source:
        raise TutelageError(f"model {spec!r}: write a file, or none, after the @")
    check_name(given)
    name = current_name(given, own_weights=not at)
    model = _loaded(spec, name, source if at else None, num_classes, dropout)
    return (
        model
        if name == given
        else replace(model, origin=f"{model.origin}; timm's name for {given} is {name}")
    )


def _loaded(
    spec: str, name: str, source: str | None, num_classes: int | None, dropout: float | None
) -> Model:
    """A model by its current name; the source is ``none``, a file, or None for a package or the hub."""
    if source == "none":
        return _random(spec, name, num_classes, dropout)
    weights = read_file(Path(source)) if source else read_package(name)
    model = _with_weights(spec, name, weights, dropout) if weights else _from_hub(spec, name, dropout)
    if source:
        model = _with_list(model, Path(source).with_suffix(CLASS_LIST))
    if num_classes is None or num_classes == model.num_classes:
        return model
    return model.with_head(num_classes, dropout)


def at_hand() -> list[str]:
    """Name the timm models whose pretrained weights are on this machine: in a package or in the hub's cache."""
    cached = [name for name in timm.list_pretrained() if in_cache(name)]
    return [*(name for name in PACKAGES if has_package(name)), *cached]


def hollow(name: str) -> tuple[nn.Module, InputSpec]:
    """Build an architecture without its tensors (on the meta device), and return it with its own input."""
    with torch.device("meta"):
        module = _build(name, num_classes=None, dropout=None)
    return module, InputSpec.of(resolve_data_config({}, model=module))


def parameters(name: str) -> int:
    """Count the parameters of an architecture, without making its tensors."""
    return sum(parameter.numel() for parameter in hollow(name)[0].parameters())


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest one that it knows.

    Args:
        name: ARCHITECTURE or ARCHITECTURE.TAG, current or deprecated.

    Raises:
        TutelageError: the architecture or the tag of its weights is unknown.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_model(name, timm.list_models())
    known = published(architecture)
    if tag and name not in known:
        near = nearest(name, known) or architecture
        raise TutelageError(f"unknown weights {tag!r} of model {architecture!r}; did you mean {near!r}?")


def current_name(name: str, own_weights: bool) -> str:
    """The name by which timm now knows an architecture; only by this it tells the head and the input.

    Args:
        name: as the user wrote it.
        own_weights: whether the published weights are wanted, which some deprecated names do not have any more.

    Raises:
        TutelageError: timm has removed the architecture or the weights.
    """
    if name not in _deprecated_models:
        return name
    current = _deprecated_models[name]
    if not current:
        raise TutelageError(f"model {name!r}: timm has removed it without a replacement; name another one")
    architecture, _, tag = current.partition(".")
    if not tag or current in timm.list_pretrained(f"{architecture}.*"):
        return current
    if own_weights:
        raise TutelageError(
            f"model {name!r}: timm calls it {architecture} now, and has no such weights any more; use "
            f"{architecture}, {architecture}@none for random weights or {architecture}@FILE"
        )
    return architecture


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
    repository = pretrained_cfg(name).hf_hub_id
    module = load_from_hub(
        name, lambda: _build(name, pretrained=True, num_classes=None, dropout=dropout), repository
    )
    model = _model(spec, name, module, f"hub {repository or name}", pretrained=True)
    return replace(model, licence=pretrained_cfg(name).license)


def _with_weights(spec: str, name: str, weights: Weights, dropout: float | None) -> TimmModel:
    saved_from = current_name(weights.metadata.get("timm", name), own_weights=False)
    if saved_from.partition(".")[0] != name.partition(".")[0]:
        raise TutelageError(
            f"{weights.origin}: was saved from {saved_from}, not {name}; write {saved_from}@..."
        )
    if not weights.ordered:
        weights = replace(weights, tensors=unwrap(weights.tensors, _names_of(name), weights.origin))
    module = _build(name, num_classes=_head_size(name, weights), dropout=dropout)
    _resized(module, weights)
    weights = _converted(weights, module, name)
    fit(module, weights)
    model = _model(spec, name, module, weights.origin, pretrained=True)
    if weights.ordered:  # of an installed package: ImageNet's
        return model
    if "timm" in weights.metadata:
        return _with_metadata(model, weights)
    presumed = (model.class_ids, model.class_names) if model.class_ids and model.class_names else None
    return replace(model, class_ids=None, class_names=None, presumed=presumed)


def _converted(weights: Weights, module: nn.Module, name: str) -> Weights:
    """The weights as the architecture has them: from another library's names, or for another resolution."""
    if weights.ordered or fits(weights.tensors, module.state_dict()):
        return weights
    for how, convert in conversions(weights.tensors, module, name):
        try:
            tensors = convert(weights.tensors)
        except (
            Exception
        ):  # timm's functions raise anything on tensors that they do not expect; `fit` names these
            continue
        if fits(tensors, module.state_dict()):
            return replace(weights, tensors=tensors, origin=f"{weights.origin}; {how}")
    return weights


@cache
def _names_of(name: str) -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(_build(name, num_classes=None, dropout=None).state_dict())


def _head_size(name: str, weights: Weights) -> int | None:
    """Number of classes of a checkpoint, read from its classifier.

    It is 0 for a backbone without a head, and None (the architecture's own) where nothing of this is found.
    """
    if weights.ordered:
        return None
    for layer in _classifiers(name):
        head = weights.tensors.get(f"{layer}.weight")
        if head is not None:
            return int(head.shape[0])
    if {key for key in weights.tensors if not key.endswith(COUNTER)} == _backbone_names(name):
        return 0
    return torchvision_head(weights.tensors, name)


@cache
def _backbone_names(name: str) -> frozenset[str]:
    """The names of the tensors of an architecture without its head, but for the counters of BatchNorm."""
    with torch.device("meta"):
        state = _build(name, num_classes=0, dropout=None).state_dict()
    return frozenset(key for key in state if not key.endswith(COUNTER))


def _classifiers(name: str) -> tuple[str, ...]:
    layers = pretrained_cfg(name).classifier or ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _model(spec: str, name: str, module: nn.Module, origin: str, *, pretrained: bool) -> TimmModel:
    class_ids, class_names = imagenet_classes(int(module.num_classes))  # type: ignore[arg-type]
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
def imagenet_classes(size: int) -> tuple[tuple[str, ...], tuple[str, ...]] | tuple[None, None]:
    """WordNet ids and names of the ImageNet head with this number of classes."""
    subset = infer_imagenet_subset({"num_classes": size})
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    return tuple(info.label_names()), tuple(map(str, info.label_descriptions()))


def _with_metadata(model: TimmModel, weights: Weights) -> TimmModel:
    """The model with the classes and the input that a tutelage file stores."""
    ids = stored_classes(weights, "class_ids")
    if ids is not None and len(ids) != model.num_classes:
        raise TutelageError(f"{weights.origin}: names {len(ids)} classes, its head has {model.num_classes}")
    return replace(
        model,
        input_spec=stored_input(weights) or model.input_spec,
        class_ids=ids,
        class_names=stored_classes(weights, "class_names"),
    )


def _with_list(model: TimmModel, path: Path) -> TimmModel:
    """The model with the classes that a file lists, one a line in the order of the head; as it is without a file.

    Raises:
        TutelageError: the file cannot be read, does not fit the head, or disagrees with the checkpoint.
    """
    if not path.is_file():
        return model
    try:
        listed = tuple(
            line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(
            f"{path}: cannot be read ({one_line(error)}); write one class a line, in UTF-8"
        ) from None
    if len(listed) != model.num_classes or len(set(listed)) != len(listed):
        raise TutelageError(
            f"{path}: lists {len(listed)} classes, {len(set(listed))} of them different, but the head of {model.spec} "
            f"has {model.num_classes}; write one class a line, in the order of the head"
        )
    if model.class_ids not in (None, listed):
        raise TutelageError(
            f"{path}: lists other classes than the checkpoint names by itself; remove the list"
        )
    return replace(model, class_ids=listed, presumed=None)


def _resized(module: nn.Module, weights: Weights) -> None:
    """Resize position embeddings to the resolution at which the weights were saved."""
    spec = stored_input(weights) if "timm" in weights.metadata else None
    if spec is None:
        return
    try:
        resize(module, spec)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise damaged(weights, error) from None
