"""The teacher's targets: live, or from a cache that it filled before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.core.runtime import Precision, autocast
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading, normalise
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy
from tutelage.distillation.losses import mean_teacher_logits
from tutelage.distillation.objective import soft_temperature
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.targets.cache import Cache
from tutelage.distillation.targets.fill import fill_from, identity_of_data
from tutelage.distillation.targets.layout import Layout
from tutelage.models.digest import state_digest
from tutelage.models.features import Layer, NetworkInfo, network_info, run_with_features
from tutelage.models.fold import for_inference
from tutelage.models.heads import device_of
from tutelage.models.registry import load_model
from tutelage.models.source import Model

UNKNOWN_INPUT = InputSpec(224, 224)  # of a network that does not tell; compared by identity


class TargetSource(Protocol):
    """What a training loop asks for the teacher's outputs."""

    @property
    def input_specs(self) -> list[InputSpec]:
        """The views it wants beside the student's; none where it needs no images."""

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Shapes of its tapped layers.

        Raises:
            TutelageError: it has no such layer, or no layers at all.
        """

    def outputs(self, images: Sequence[Tensor], index: Tensor, epoch: int) -> Outputs:
        """Its outputs for a batch, on the device: images by `input_specs`, positions in the subset, epoch from 0."""


class Teacher:
    """One or several frozen networks that look at the student's view, each in its own way.

    Args:
        models: networks whose heads have the same classes in the same order; one may be given alone. A name
            (NAME@WEIGHTS) is loaded, and any ``nn.Module`` is taken as it is.
        device: where they run; None: where the first one lies.
        precision: bf16 runs them under autocast; the outputs are float32 in either case.
        layers: of the first network, whose outputs are given too. A network whose layers are tapped is not folded.
    """

    def __init__(
        self,
        models: Model | nn.Module | str | Sequence[Model | nn.Module | str],
        device: torch.device | None = None,
        precision: Precision = "fp32",
        layers: Sequence[Layer] = (),
    ) -> None:
        several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
        self.models = [as_model(model) for model in several]
        self.device = device or device_of(self.models[0].module)
        self.precision = precision
        self.layers = tuple(layers)
        for model in self.models:
            model.module.eval().requires_grad_(False).to(self.device)
        self._networks = [self._network(model, place) for place, model in enumerate(self.models)]

    def tap(self, layers: Sequence[Layer]) -> None:
        """Give the outputs of these layers too, from now on."""
        if missing := [layer for layer in layers if layer not in self.layers]:
            self.layers = (*self.layers, *missing)
            self._networks[0] = self._network(self.models[0], 0)

    def _network(self, model: Model, place: int) -> nn.Module:
        if place == 0 and self.layers:
            return model.module
        return for_inference(model.module, model.input_spec, self.device, self.precision)

    @property
    def input_specs(self) -> list[InputSpec]:
        """How each network wants its pictures."""
        return [model.input_spec for model in self.models]

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Shapes of some layers of the first network."""
        spec = self.models[0].input_spec
        return network_info(self.models[0].module, layers, spec.height, spec.width, self.device)

    @torch.no_grad()
    def outputs(self, images: Sequence[Tensor], index: Tensor | None = None, epoch: int = 0) -> Outputs:
        """Logits (B, C) in float32 and tapped layers of one batch, given once in each network's own form.

        Several teachers give the logarithm of their mean probability. `index` and `epoch` are not needed.
        """
        logits: list[Tensor] = []
        features: dict[Layer, Tensor] = {}
        for place, (network, batch) in enumerate(zip(self._networks, images, strict=True)):
            with autocast(self.device, self.precision):
                layers = self.layers if place == 0 else ()
                answer, tapped = run_with_features(network, network, batch, layers)
                logits.append(answer.float())
                features |= tapped
        return Outputs(logits[0] if len(logits) == 1 else mean_teacher_logits(logits), features)

    def identity(self) -> list[dict[str, Any]]:
        """What decides the targets of a view, as plain JSON values."""
        return [
            {
                "name": model.name,
                "weights": state_digest(model.module.state_dict()),
                "input": model.input_spec.to_dict(),
            }
            for model in self.models
        ]

    def logits(self, views: Sequence[Tensor]) -> Tensor:
        """The logits (B, C) of uint8 views as a loader gives them, mean and std still to be applied."""
        images = [normalise(x, spec, self.device) for x, spec in zip(views, self.input_specs, strict=True)]
        logits = self.outputs(images).logits
        assert isinstance(logits, Tensor)
        return logits


class CachedTeacher:
    """Targets read from a filled cache: no network runs and no image is rendered for it.

    Args:
        cache: of the part that the student learns from.
        views: how many it holds; epoch e reads view e mod `views`.
        device: where the targets go.
    """

    def __init__(self, cache: Cache, views: int, device: torch.device) -> None:
        self.cache = cache
        self.views = views
        self.device = device

    @property
    def input_specs(self) -> list[InputSpec]:
        """None: it needs no images."""
        return []

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Nothing: a cache holds logits only."""
        if layers:
            raise TutelageError(
                f"targets.mode=cached: a cache holds logits only, not layer {layers[0]!r}; use targets.mode=live"
            )
        return NetworkInfo()

    def outputs(self, images: Sequence[Tensor], index: Tensor, epoch: int) -> Outputs:
        """The targets of the images at `index` (B,), in the view of an epoch."""
        return Outputs(self.cache.read(epoch % self.views, index.numpy()).to(self.device))


def passes(recipe: Recipe) -> int:
    """How often a run's teacher looks at each image."""
    epochs = recipe.train.epochs
    return min(recipe.targets.views or epochs, epochs) if recipe.targets.mode == "cached" else epochs


def cached_teacher(
    teacher: Teacher,
    subset: Subset,
    recipe: Recipe,
    directory: Path,
    loading: Loading,
    progress: Progress,
    on_batch: Callable[[], None] = lambda: None,
) -> CachedTeacher:
    """The targets of a run's views of a subset, from the cache that they are shared in, filled where they are missing.

    The cache is keyed by the teachers' weights, input and precision, the images, the views' policy and the seed:
    it serves any student, and a stale one cannot be used.

    Args:
        teacher: asked for what is missing.
        subset: what the student will learn from.
        recipe: of the run.
        directory: holds the caches of any number of runs.
        loading: how images are loaded.
        progress: where it reports to.
        on_batch: called after each batch; may raise to stop, and what is done is kept.

    Raises:
        TutelageError: the disk is too small, or a logit is not finite in fp16.
    """
    settings, seed, views = recipe.targets, recipe.train.seed, passes(recipe)
    policy = ViewPolicy(recipe.view)
    layout = Layout(len(subset), teacher.models[0].num_classes, settings.top_k, soft_temperature(recipe.loss))
    identity = {"teachers": teacher.identity(), "precision": teacher.precision}
    cache = Cache(directory, identity | identity_of_data(subset, policy, seed), layout)
    fill_from(
        cache,
        teacher.logits,
        teacher.input_specs,
        subset,
        policy,
        seed=seed,
        views=views,
        loading=loading,
        progress=progress,
        on_batch=on_batch,
    )
    return CachedTeacher(cache, views, teacher.device)


def as_model(model: Model | nn.Module | str) -> Model:
    """A model by its name, or any network as one; a `Model` stays as it is.

    Unlike `Model.of` it changes nothing in the network, which may be in training, and asks for no input: where
    ``pretrained_cfg`` does not tell it, images are taken to be as the network wants them.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        return load_model(model)
    name, cfg = type(model).__name__, getattr(model, "pretrained_cfg", None)
    spec = InputSpec.of(cfg) if cfg else UNKNOWN_INPUT
    return Model(name, name, model, spec, None, None, "given as a module", pretrained=True)
