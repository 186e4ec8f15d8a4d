"""Filling of a cache of targets with a network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tutelage.core.progress import Progress
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading, view_loader
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy
from tutelage.data.workers import dead_workers_named
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.targets.cache import Cache
from tutelage.distillation.targets.layout import BATCH
from tutelage.models.features import POOLED

# uint8 views, one tensor for each input, and the images' positions (B,), to the teacher's outputs
Answers = Callable[[Sequence[Tensor], Tensor], Outputs]


def identity_of_data(subset: Subset, policy: ViewPolicy, seed: int) -> dict[str, Any]:
    """Return the part of a cache's identity that is about images and views."""
    return {
        "data": subset.digest(),
        "stamp": subset.images.stamp(),
        "source": subset.images.name,
        "seed": seed,
        "view": policy.recipe.model_dump(mode="json", exclude={"mixup", "cutmix", "mix_probability"}),
    }


@dead_workers_named()
def fill_from(
    cache: Cache,
    answers: Answers,
    specs: Sequence[InputSpec],
    subset: Subset,
    policy: ViewPolicy,
    *,
    seed: int,
    views: int,
    loading: Loading,
    progress: Progress,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Fill a cache with a network's outputs, and report progress.

    Args:
        cache: made for the subset, the policy and the seed.
        answers: computes the outputs, with the pooled features where the cache has them.
        specs: inputs of the networks.
        subset: the images.
        policy: of their views.
        seed: of the run.
        views: number of views of each image.
        loading: how images are loaded.
        progress: receives each batch.
        on_batch: called after each batch; may raise to stop.
    """
    cache.prepare(views)
    missing = cache.missing(views)
    megabytes = views * cache.layout.view_bytes / 1e6
    pooled = f" with {cache.layout.pooled:,} pooled features" if cache.layout.pooled else ""
    progress.say(
        f"targets{pooled}: {views} views of {len(subset):,} images, {megabytes:.1f} MB in {cache.place}, "
        + (f"{missing:,} to compute" if missing else "all present")
    )
    if not missing:
        return

    def make(view: int, batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in view_loader(
            subset, policy, specs, batches, seed=seed, view=view, workers=loading.workers, bad=loading.bad
        ):
            positions = batch["index"].numpy()
            found = answers(batch["images"], batch["index"])
            assert isinstance(found.logits, Tensor)
            yield positions, cache.layout.encode(found.logits, found.features.get(POOLED))
            progress.step({}, len(positions))
            on_batch()

    progress.begin("targets", -(-missing // BATCH))
    try:
        cache.fill(views, make)
    finally:
        progress.end()
