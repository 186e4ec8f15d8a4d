"""What a model is to the rest of the package, whatever library it comes from."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.classes import map_classes
from tutelage.data.input_spec import IdInput, InputSpec
from tutelage.data.subset import Subset
from tutelage.models.heads import copy_outputs, device_of, head_layers, parameters_of, replace_head, zero_head
from tutelage.models.weights import Weights, fit, read_file
from tutelage.models.wrappings import unwrap


class Loader(Protocol):
    """What a package names in the entry point group ``tutelage.models``: a function that loads its kind of models."""

    def __call__(
        self, where: str, /, *, num_classes: int | None = None, dropout: float | None = None
    ) -> Model:
        """Load a model.

        Args:
            where: what was written after the colon of ``KIND:WHERE``.
            num_classes: outputs of the head; None: the model's own. Where the weights have another head, a new one
                is drawn from torch's global generator.
            dropout: rate in the head; None: the model's own. A kind without dropout leaves it aside.

        Returns:
            `Model.of` a module, or an object of a subclass of `Model` that knows more about its library.

        Raises:
            TutelageError: there is no such model, or it cannot be loaded; one line that says what to do.
        """
        ...


@dataclass(frozen=True)
class Model:
    """A classifier and what is known about it. Any `nn.Module` becomes one by `Model.of`.

    The methods here work for any module. A library that can do better has a subclass: timm's models are
    `tutelage.models.timm.TimmModel`.

    Attributes:
        spec: what the user wrote: NAME@WEIGHTS, or KIND:WHERE.
        name: of the architecture, for people.
        module: (B, 3, H, W) normalised images to (B, C) logits; in eval mode, channels last, float32.
        input_spec: the images that it takes: size, mean, std, evaluation crop.
        class_ids: of its head, in order (WordNet ids for ImageNet's heads); None where unknown.
        class_names: for people, in order; None where unknown.
        origin: where the weights are from.
        pretrained: False for random weights.
        head_size: number of logits; None: the module knows it (`module.num_classes`).
        presumed: ids and names of the ImageNet classes that a head of this size may have, where its checkpoint names
            none; see `recognised`.
        licence: of the weights, as their publisher names it; None where it is not known.
        random_head: the weights are those of a backbone alone, so that the head is random and has to be replaced.
    """

    spec: str
    name: str
    module: nn.Module
    input_spec: InputSpec
    class_ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    origin: str
    pretrained: bool
    head_size: int | None = None
    presumed: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    licence: str | None = None
    random_head: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        input_spec: InputSpec | None = None,
        class_ids: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        origin: str = "given as a module",
        pretrained: bool = True,
    ) -> Model:
        """Any module as a model. It is put into eval mode, float32 and channels last, in place.

        Args:
            module: takes (B, 3, H, W) normalised images and gives (B, C) logits.
            input_spec: the images that it takes; None: as the module's ``pretrained_cfg`` says (timm's have one).
            class_ids: of its logits, in order, as the data names its classes; None: they are taken to be the data's
                classes in their order, where there are as many.
            class_names: for people, in order.
            name: None: the name of its class.
            origin: where the weights are from.
            pretrained: whether the weights are trained; the head of random weights is replaced where it does not
                match the data.

        Raises:
            TutelageError: the input is unknown, the module does not give one tensor of logits, or the number of
                `class_ids` is not that of its logits.
        """
        name = name or type(module).__name__
        if input_spec is None:
            cfg = getattr(module, "pretrained_cfg", None)
            if not cfg:
                raise TutelageError(
                    f"{name}: which images it takes is unknown; give input_spec=InputSpec(height, width, mean, std)"
                )
            input_spec = InputSpec.of(cfg)
        size = _logits(name, ready(module), input_spec).shape[1]
        for what, given in (("class_ids", class_ids), ("class_names", class_names)):
            if given is not None and len(given) != size:
                raise TutelageError(
                    f"{name}: gives {size} logits, but there are {len(given)} {what}; give {size}"
                )
        return cls(
            spec=name,
            name=name,
            module=module,
            input_spec=input_spec,
            class_ids=None if class_ids is None else tuple(class_ids),
            class_names=None if class_names is None else tuple(class_names),
            origin=origin,
            pretrained=pretrained,
            head_size=size,
        )

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.module.num_classes) if self.head_size is None else self.head_size  # type: ignore[arg-type]

    def recognised(self, classes: Sequence[str]) -> Model:
        """The model with ImageNet's classes, if its head may have them and all classes of some data are among them.

        A head with as many outputs as ImageNet has classes may as well have a user's own: the number shows nothing.
        """
        if self.presumed is None or not classes or map_classes(classes, self.presumed[0]) is None:
            return self
        ids, names = self.presumed
        return replace(self, class_ids=ids, class_names=names, presumed=None)

    @property
    def looks_up(self) -> bool:
        """Whether its answers are stored by image, so that no network runs and nothing of it can be timed."""
        return isinstance(self.input_spec, IdInput)

    @property
    def sees(self) -> str:
        """What it takes, in words."""
        return "answers stored by image" if self.looks_up else f"{self.input_spec.height} px"

    def for_images(self, parts: Mapping[str, Subset]) -> Model:
        """The model for the images of a run, by their roles: a network takes any, but stored answers may lack some.

        Raises:
            TutelageError: it has no answer for some of them.
        """
        return self

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the layer that gives the logits, see `models.heads.head_layers`.

        Raises:
            TutelageError: no layer looks like a head.
        """
        layers = head_layers(self.module, self.num_classes)
        if not layers:
            raise TutelageError(
                f"{self.spec}: {self._no_head()}; train all of it, without fitting its head alone"
            )
        return parameters_of(layers)

    def with_head(self, classes: Sequence[str] | int) -> Model:
        """A copy with a new head of zeros, see `models.heads.zero_head`; all else keeps its weights.

        Args:
            classes: their ids in order, or how many there are.

        Raises:
            TutelageError: no layer looks like a head.
        """
        size = classes if isinstance(classes, int) else len(classes)
        module = replace_head(copy.deepcopy(self.module), self.num_classes, size)
        if module is None or _logits(self.spec, ready(module), self.input_spec).shape[1] != size:
            raise TutelageError(
                f"{self.spec}: {self._no_head()}, so that none for {size} classes can be put on; give a module with "
                f"{size} logits"
            )
        zero_head(module, size)
        ids = None if isinstance(classes, int) else tuple(classes)
        return replace(
            self,
            module=module,
            class_ids=ids,
            class_names=None,
            head_size=size,
            presumed=None,
            random_head=False,
        )

    def with_some_classes(self, classes: Sequence[str], index: Sequence[int]) -> Model | None:
        """A copy whose head has only some of its classes, with their weights and names; all else is the same.

        Args:
            classes: their ids in order.
            index: (C,) their places in the present head.

        Returns: The copy; None where no layer looks like a head, or where these logits depend on the other classes.
        """
        try:
            model = self.with_head(classes)
        except TutelageError:
            return None
        known = copy_outputs(self.module, self.num_classes, model.module, index)
        before = _logits(self.spec, self.module, self.input_spec)[:, list(index)]
        same = torch.allclose(before, _logits(self.spec, model.module, self.input_spec), rtol=1e-3, atol=1e-3)
        names = self.class_names and tuple(self.class_names[place] for place in index)
        return replace(model, class_names=names) if known and same else None

    def at(self, resolution: int) -> Model:
        """The model at another square resolution in pixels; the module is changed in place.

        timm's transformers get their position embeddings resampled (``set_input_size``). Whether another network
        works at the resolution shows when it runs.

        Raises:
            TutelageError: the architecture cannot work at it.
        """
        spec = self.input_spec.at(resolution)
        try:
            resize(self.module, spec)
        except (AssertionError, ValueError, TypeError, RuntimeError) as error:
            raise TutelageError(f"{self.spec}: cannot work at {resolution} px ({error})") from None
        return replace(self, input_spec=spec)

    def reload(self, path: Path) -> Model:
        """A copy with the weights, head, classes and input of a file that a run saved of this architecture.

        Raises:
            TutelageError: the file is missing or damaged, or is of another architecture.
        """
        weights = read_file(path)
        saved_from = weights.metadata.get("model") or weights.metadata.get("timm", self.name)
        if saved_from != self.name:
            raise TutelageError(f"{path}: was saved from {saved_from}, not from {self.name}")
        ids, spec = stored_classes(weights, "class_ids"), stored_input(weights) or self.input_spec
        model = self if ids is None or len(ids) == self.num_classes else self.with_head(ids)
        module = copy.deepcopy(model.module)
        try:
            resize(module, spec)
        except (AssertionError, ValueError, TypeError, RuntimeError) as error:
            raise damaged(weights, error) from None
        if not weights.metadata:  # another program's, which may have wrapped the network
            tensors = unwrap(weights.tensors, tuple(module.state_dict()), weights.origin)
            weights = replace(weights, tensors=tensors)
        fit(module, weights)
        return replace(
            model,
            module=ready(module),
            input_spec=spec,
            class_ids=ids,
            class_names=stored_classes(weights, "class_names"),
            origin=weights.origin,
            pretrained=True,
            presumed=None,
            random_head=False,
        )

    def copied(self, state: Mapping[str, Tensor] | None = None) -> Model:
        """Copy the model, so that its own weights stay as they are when the copy is trained.

        Args:
            state: weights that the copy takes; None: the model's own.
        """
        module = copy.deepcopy(self.module)
        if state is not None:
            module.load_state_dict(state)
        return replace(self, module=module)

    def metadata(self) -> dict[str, str]:
        """What `save_weights` stores, so that `reload` brings back classes and input."""
        return {"model": self.name} | self._described()

    def _described(self) -> dict[str, str]:
        known = {
            "input": json.dumps(self.input_spec.to_dict()),
            "class_ids": json.dumps(self.class_ids),
            "class_names": json.dumps(self.class_names),
        }
        return {key: value for key, value in known.items() if value != "null"}

    def _no_head(self) -> str:
        return f"no linear layer or 1x1 convolution in it has {self.num_classes} outputs and so looks like its head"


def ready(module: nn.Module) -> nn.Module:
    """The module in eval mode, float32 and channels last, changed in place."""
    return with_channels_last(module.float().eval())


def with_channels_last(module: nn.Module) -> nn.Module:
    """Store the weights of a module's two-dimensional convolutions with channels last, in place.

    ``module.to(memory_format=torch.channels_last)`` fails where there is a three-dimensional convolution, as in timm's
    lambda networks.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            # `contiguous` would leave 1x1 and depthwise kernels as they are, which fit both layouts, and their
            # convolutions would then convert all images to the other layout and back
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


def resize(module: nn.Module, spec: InputSpec) -> None:
    """Resample what a network holds of one resolution, where it can (timm's ``set_input_size``)."""
    change = getattr(module, "set_input_size", None)
    if callable(change):
        change(img_size=(spec.height, spec.width))


def stored_input(weights: Weights) -> InputSpec | None:
    """The input that a tutelage file's model takes; None where the file is another program's.

    Raises:
        TutelageError: the metadata is damaged.
    """
    if "input" not in weights.metadata:
        return None
    try:
        return InputSpec.from_dict(json.loads(weights.metadata["input"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(weights, error) from None


def stored_classes(weights: Weights, key: str) -> tuple[str, ...] | None:
    """The ``class_ids`` or ``class_names`` of a tutelage file; None where it names none.

    Raises:
        TutelageError: the metadata is damaged.
    """
    try:
        stored = json.loads(weights.metadata.get(key, "null"))
        return tuple(stored) if stored else None
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(weights, error) from None


def damaged(weights: Weights, error: Exception) -> TutelageError:
    """The error of a file whose metadata cannot be used."""
    return TutelageError(f"{weights.origin}: its metadata is damaged ({error})")


@torch.no_grad()
def _logits(name: str, module: nn.Module, spec: InputSpec) -> Tensor:
    """What a module gives for two images.

    Raises:
        TutelageError: it is not a (2, C) tensor.
    """
    images = torch.zeros(2, 3, spec.height, spec.width, device=device_of(module))
    takes = f"images of shape (B, 3, {spec.height}, {spec.width})"
    try:
        found = module(images)
    except Exception as error:  # the user's own code may raise anything
        reason = one_line(error)[:200]
        raise TutelageError(f"{name}: does not take {takes} ({reason}); see input_spec") from error
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2:
        return found
    what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise TutelageError(
        f"{name}: gives {what} for {takes}, not logits of shape (B, C); wrap it in a module that returns the logits"
    )
