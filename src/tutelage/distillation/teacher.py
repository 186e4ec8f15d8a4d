"""The teacher's targets: live, or from a cache that it filled before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.core.runtime import Precision, autocast
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading, normalise
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy
from tutelage.distillation.losses import mean_teacher_logits
from tutelage.distillation.targets.cache import Cache
from tutelage.distillation.targets.fill import fill_from, identity_of_data
from tutelage.distillation.targets.layout import Layout, Targets
from tutelage.models.digest import state_digest
from tutelage.models.fold import for_inference
from tutelage.models.source import Model


class TargetSource(Protocol):
    """What a training loop asks for targets."""

    @property
    def input_specs(self) -> list[InputSpec]:
        """The views it wants beside the student's; none where it needs no images."""

    def targets(self, images: Sequence[Tensor], index: Tensor, epoch: int) -> Targets:
        """Targets of a batch on the device: images by `input_specs`, positions in the part, epoch from 0."""


class Teacher:
    """One or several frozen networks that look at the student's view, each in its own way.

    Args:
        models: networks whose heads have the same classes in the same order.
        device: where they run.
        precision: bf16 runs them under autocast; the targets are float32 in either case.
    """

    def __init__(self, models: Sequence[Model], device: torch.device, precision: Precision = "fp32") -> None:
        self.models = list(models)
        self.device = device
        self.precision = precision
        for model in self.models:
            model.module.eval().requires_grad_(False).to(device)
        self._networks = [for_inference(m.module, m.input_spec, device, precision) for m in self.models]

    @property
    def input_specs(self) -> list[InputSpec]:
        """How each network wants its pictures."""
        return [model.input_spec for model in self.models]

    @torch.no_grad()
    def targets(self, images: Sequence[Tensor], index: Tensor | None = None, epoch: int = 0) -> Tensor:
        """Logits (B, C) in float32 of one batch, given once in each network's own form.

        Several teachers give the logarithm of their mean probability. `index` and `epoch` are not needed.
        """
        outputs = []
        for network, batch in zip(self._networks, images, strict=True):
            with autocast(self.device, self.precision):
                outputs.append(network(batch).float())
        return outputs[0] if len(outputs) == 1 else mean_teacher_logits(outputs)

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
        """`targets` of uint8 views as a loader gives them, mean and std still to be applied."""
        return self.targets(
            [normalise(x, spec, self.device) for x, spec in zip(views, self.input_specs, strict=True)]
        )


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

    def targets(self, images: Sequence[Tensor], index: Tensor, epoch: int) -> Targets:
        """The targets of the images at `index` (B,), in the view of an epoch."""
        return self.cache.read(epoch % self.views, index.numpy()).to(self.device)


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
    layout = Layout(len(subset), teacher.models[0].num_classes, settings.top_k, recipe.loss.temperature)
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
