"""The teacher's targets: computed live, or read from a cache."""

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
from tutelage.distillation.folds import Folds
from tutelage.distillation.looks import Looks
from tutelage.distillation.losses import mean_teacher_logits
from tutelage.distillation.objective import Objective, soft_temperature, terms_of
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.targets.cache import Cache
from tutelage.distillation.targets.fill import fill_from, identity_of_data
from tutelage.distillation.targets.layout import Layout
from tutelage.models.digest import state_digest
from tutelage.models.features import POOLED, Layer, NetworkInfo, network_info, run_with_features
from tutelage.models.fold import for_inference
from tutelage.models.heads import device_of
from tutelage.models.registry import load_model
from tutelage.models.source import Model

UNKNOWN_INPUT = InputSpec(224, 224)  # of a network without `pretrained_cfg`; compared by identity


class TargetSource(Protocol):
    """The source of the teacher's outputs in a training loop."""

    @property
    def input_specs(self) -> list[InputSpec]:
        """The inputs for which views are rendered beside the student's; none where it needs no images."""

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Return the shapes of some layers.

        Raises:
            TutelageError: it does not have one of the layers, or none at all.
        """

    def outputs(self, images: Sequence[Tensor], index: Tensor, views: Tensor) -> Outputs:
        """Return the outputs for a batch, on the device.

        Args:
            images: one tensor (B, 3, H, W) for each of `input_specs`, normalised.
            index: (B,) int64, positions in the subset.
            views: (B,) int64, index of each image's view.
        """


class Teacher:
    """One or several frozen networks that see the student's view, each at its own resolution, mean and std.

    Args:
        models: one or several networks whose heads have the same classes in the same order. A name (NAME@WEIGHTS) is
            loaded, and any ``nn.Module`` is used as it is.
        device: where they run; None: the device of the first one.
        precision: bf16 runs them under autocast; the outputs are float32 in either case.
        layers: layers of the first network whose outputs are returned too. A network with tapped layers is not folded.
        temperature: divides the (joint) logits, to calibrate them; 1 leaves them as they are.
        looks: the mirror image and further resolutions of a view over which each network's probabilities are averaged.
            Tapped layers are those of the view itself.
        folds: which head answers for each training image, where `models` are from `folds.with_fold_heads`.

    Raises:
        TutelageError: a network does not work at one of the resolutions.
    """

    def __init__(
        self,
        models: Model | nn.Module | str | Sequence[Model | nn.Module | str],
        device: torch.device | None = None,
        precision: Precision = "fp32",
        layers: Sequence[Layer] = (),
        looks: Looks | None = None,
        temperature: float = 1.0,
        folds: Folds | None = None,
    ) -> None:
        several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
        self.models = [as_model(model) for model in several]
        self.device = device or device_of(self.models[0].module)
        self.precision = precision
        self.layers = tuple(layers)
        self.looks, self.folds = looks or Looks(), folds
        self.temperature = temperature
        for model in self.models:
            model.module.eval().requires_grad_(False).to(self.device)
        groups = [self._at_inputs(model, place) for place, model in enumerate(self.models)]
        self._networks = [network for group in groups for network in group]  # one for each of `input_specs`
        self._models = [place for place, group in enumerate(groups) for _ in group]

    def tap(self, layers: Sequence[Layer]) -> None:
        """Also return the outputs of these layers from now on."""
        if missing := [layer for layer in layers if layer not in self.layers]:
            self.layers = (*self.layers, *missing)
            first = self._at_inputs(self.models[0], 0)
            self._networks[: len(first)] = first

    def _at_inputs(self, model: Model, place: int) -> list[nn.Module]:
        """Return a network for each input of a model; one and the same where it does not depend on the resolution."""
        ready = {model.module: model.module} if place == 0 and self.layers else {}
        resized = self.looks.models(model)
        for one in resized:
            if one.module not in ready:
                ready[one.module] = for_inference(one.module, one.input_spec, self.device, self.precision)
        return [ready[one.module] for one in resized]

    @property
    def input_specs(self) -> list[InputSpec]:
        """The inputs of each network: its own, and those at further resolutions."""
        return [spec for model in self.models for spec in self.looks.inputs(model.input_spec)]

    @property
    def num_classes(self) -> int:
        """Number of logits that it answers with."""
        return self.models[0].num_classes // (self.folds.count + 1 if self.folds else 1)

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Return the shapes of some layers of the first network."""
        spec = self.models[0].input_spec
        return network_info(self.models[0].module, layers, spec.height, spec.width, self.device)

    @torch.no_grad()
    def outputs(
        self, images: Sequence[Tensor], index: Tensor | None = None, views: Tensor | None = None
    ) -> Outputs:
        """Compute the logits (B, C) in float32 and the tapped layers of one batch.

        The logits of several teachers, and of several looks at a view, are the logarithm of their mean probability.

        Args:
            images: the batch (B, 3, H, W), normalised for each of `input_specs`.
            index: (B,) positions in the training images, which folds need; else not used.
            views: not used; `CachedTeacher` needs them.
        """
        logits: list[list[Tensor]] = [[] for _ in self.models]
        features: dict[Layer, Tensor] = {}
        for network, model, batch in zip(self._networks, self._models, images, strict=True):
            for look in (batch, batch.flip(3)) if self.looks.flip else (batch,):
                layers = self.layers if not logits[0] else ()  # of the first network's first look
                with autocast(self.device, self.precision):
                    output, tapped = run_with_features(network, network, look, layers)
                if self.folds:
                    assert index is not None
                    output = self.folds.pick(output, index)
                logits[model].append(output.float())
                features |= tapped
        together = _mean([_mean(own) for own in logits])
        return Outputs(together / self.temperature, features)

    def identity(self) -> list[dict[str, Any]]:
        """Return all that the targets of a view depend on, as plain JSON values."""
        looks = {} if self.looks == Looks() else {"looks": [self.looks.flip, *self.looks.resolutions]}
        folds = {"folds": self.folds.digest()} if self.folds else {}
        return [
            {
                "name": model.name,
                "weights": state_digest(model.module.state_dict()),
                "input": model.input_spec.to_dict(),
                **looks,
                **folds,
            }
            for model in self.models
        ]

    def logits(self, views: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Compute the logits (B, C) of uint8 views from a loader, one tensor (B, 3, H, W) for each input.

        Args:
            views: one tensor for each of `input_specs`.
            index: as for `outputs`.
        """
        logits = self.answers(views, index).logits
        assert isinstance(logits, Tensor)
        return logits

    def answers(self, views: Sequence[Tensor], index: Tensor | None = None) -> Outputs:
        """As `logits`, with the tapped layers."""
        images = [normalise(x, spec, self.device) for x, spec in zip(views, self.input_specs, strict=True)]
        return self.outputs(images, index)


def _mean(logits: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability, or the only logits as they are."""
    return logits[0] if len(logits) == 1 else mean_teacher_logits(logits)


class CachedTeacher:
    """Targets from a filled cache: no network runs, and no image is rendered for it.

    Args:
        cache: of the student's training images.
        views: number of views in it, which come round: view v is read as v mod `views`.
        device: where the targets go.
    """

    def __init__(self, cache: Cache, views: int, device: torch.device) -> None:
        self.cache = cache
        self.views = views
        self.device = device

    @property
    def input_specs(self) -> list[InputSpec]:
        """An empty list: it needs no images."""
        return []

    def info(self, layers: Sequence[Layer]) -> NetworkInfo:
        """Return the number of the pooled features, and refuse any other layer, which a cache does not hold."""
        pooled = self.cache.layout.pooled
        for layer in layers:
            if layer != POOLED or not pooled:
                held = "logits and pooled features" if pooled else "logits"
                raise TutelageError(
                    f"targets.mode=cached: the cache holds {held} only, not layer {layer!r}; use targets.mode=live"
                )
        return NetworkInfo({POOLED: (pooled,)} if pooled else {})

    def outputs(self, images: Sequence[Tensor], index: Tensor, views: Tensor) -> Outputs:
        """Read the targets of the images at `index` (B,), each in its view (B,)."""
        return self.cache.outputs(views.numpy() % self.views, index.numpy()).to(self.device)


def passes(recipe: Recipe) -> int:
    """Return how often the teacher of a run computes targets for each image."""
    epochs = recipe.train.epochs
    return min(recipe.targets.views or epochs, epochs) if recipe.targets.mode == "cached" else epochs


def pooled_width(recipe: Recipe, teacher: Model) -> int:
    """Return how many pooled features of the first teacher a cache of a run's targets holds; 0: none.

    Raises:
        TutelageError: a term needs them, and they are not one vector for each image.
    """
    if recipe.targets.mode != "cached" or not Objective(terms_of(recipe.loss)).teacher_layers:
        return 0
    spec = teacher.input_spec
    info = network_info(teacher.module, [POOLED], spec.height, spec.width, device_of(teacher.module))
    shape = info.shapes[POOLED]
    if len(shape) != 1:
        raise TutelageError(
            f"targets.mode=cached: what goes into the head of {teacher.spec} is of shape {shape}, and a cache takes "
            "one vector for each image; use targets.mode=live"
        )
    return shape[0]


def cached_teacher(
    teacher: Teacher,
    subset: Subset,
    recipe: Recipe,
    directory: Path,
    loading: Loading,
    progress: Progress,
    on_batch: Callable[[], None] = lambda: None,
) -> CachedTeacher:
    """Open the cache with the targets of a run's views of a subset, and compute the targets that are missing.

    The key of the cache is made of the teachers' weights, input and precision, the images, the view settings and the
    seed. So it serves any student, and a stale cache is never used.

    Args:
        teacher: computes the missing targets.
        subset: the student's training images.
        recipe: of the run.
        directory: holds the caches of any number of runs.
        loading: how images are loaded.
        progress: receives reports.
        on_batch: called after each batch; may raise to stop, and the targets so far are kept.

    Raises:
        TutelageError: the disk is too small, or a logit or a feature is not finite in fp16.
    """
    settings, seed, views = recipe.targets, recipe.train.seed, passes(recipe)
    policy = ViewPolicy(recipe.view)
    pooled = pooled_width(recipe, teacher.models[0])
    if pooled:
        teacher.tap([POOLED])
    temperature = soft_temperature(recipe.loss)
    layout = Layout(len(subset), teacher.num_classes, settings.top_k, temperature, pooled)
    identity: dict[str, Any] = {"teachers": teacher.identity(), "precision": teacher.precision}
    if teacher.temperature != 1:
        identity["teacher_temperature"] = teacher.temperature
    cache = Cache(directory, identity | identity_of_data(subset, policy, seed), layout)
    fill_from(
        cache,
        teacher.answers,
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
    """Load a model by its name, or wrap any network as one; a `Model` is returned as it is.

    Unlike `Model.of` it changes nothing in the network, which may be in training, and needs no input: without a
    ``pretrained_cfg``, images are assumed to fit the network.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        return load_model(model)
    name, cfg = type(model).__name__, getattr(model, "pretrained_cfg", None)
    spec = InputSpec.of(cfg) if cfg else UNKNOWN_INPUT
    return Model(name, name, model, spec, None, None, "given as a module", pretrained=True)
