"""Which class each model gives for held-out images: by a linear probe, or by its own head where that knows the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.data.splits import Splits, Subset, stratified
from tutelage.distillation.probe import BelowHead, Head, fit_heads
from tutelage.evaluation.predict import predict_together
from tutelage.pipeline.advise.candidates import Contender

BATCH = 32  # images; larger batches do not fit into a processor's caches and take up to twice as long
HELD_SHARE = 3  # at most a third of the labelled images is held out


@dataclass(frozen=True)
class Parts:
    """The images of the probes, none of which is in the run's test part.

    Attributes:
        fit: the probes are fitted to these.
        held: they are evaluated on these: images of val, and where these are few, training images that `fit` lacks.
    """

    fit: Subset
    held: tuple[Subset, ...]

    def __len__(self) -> int:
        return len(self.fit) + sum(map(len, self.held))


def parts(splits: Splits, images: int) -> Parts:
    """Select labelled images, each class in proportion to its size.

    Args:
        splits: of a run on the same data.
        images: at most so many to fit to, and half as many held out.

    Raises:
        TutelageError: the training images have fewer than two classes with labels.
    """
    train, val = _labelled(splits.train), _labelled(splits.val)
    if len(np.unique(train.labels)) < 2:
        raise TutelageError(
            f"{splits.train.images.name}: advise needs labelled training images of two classes or more; put them into "
            "a folder for each class, such as photos/cat and photos/dog"
        )
    wanted = max(1, min(images // 2, (len(train) + len(val)) // HELD_SHARE))
    val = _some(val, wanted, splits.seed)
    extra = max(0, wanted - len(val))
    fit = _some(train, min(images, len(train) - extra), splits.seed)
    rest = replace(train, indices=np.setdiff1d(train.indices, fit.indices))
    more = _some(rest, extra, splits.seed)
    return Parts(fit, tuple(part for part in (val, more) if len(part)))


def _labelled(part: Subset) -> Subset:
    return replace(part, indices=part.indices[part.labels >= 0])


def _some(part: Subset, images: int, seed: int) -> Subset:
    if len(part) <= images:
        return part
    return replace(part, indices=stratified(part.images, part.indices, images, seed))


def held_out_answers(
    contenders: Sequence[Contender],
    images: Parts,
    runtime: Runtime,
    loading: Loading,
    on_batch: Callable[[int], object],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return for each model the class (N,) that it gives for each held-out image, and the labels (N,).

    All models see the same images, each of which is decoded once. Classes are those of the data; -2 is another class
    of a model's own head.

    Args:
        contenders: those that can be probed or have a head of their own.
        images: to fit to and to evaluate on.
        runtime: device; features are computed in its precision.
        loading: how images are loaded.
        on_batch: called with the number of images of each batch that is done.
    """
    networks = []
    for one in contenders:
        network = BelowHead(one.model) if one.own_head is None else one.model.module
        networks.append((network.to(runtime.device), one.model.input_spec))

    def outputs(subset: Subset) -> tuple[list[Tensor], Tensor]:
        with runtime.autocast():
            found = predict_together(networks, subset, runtime, loading, batch_size=BATCH, on_batch=on_batch)
        return [one.logits for one in found], torch.from_numpy(subset.labels)[found[0].index]

    ours, labels = outputs(images.fit)
    theirs = [outputs(subset) for subset in images.held]
    truth = torch.cat([found for _, found in theirs])
    classes = len(images.fit.classes)
    answers = []
    for place, one in enumerate(contenders):
        held = torch.cat([found[place] for found, _ in theirs])
        if one.own_head is None:
            answers.append(_probed(fit_heads(ours[place], labels, classes), held, truth))
        else:
            answers.append(_own(held, one.own_head))
    return answers, truth.numpy()


def _probed(heads: Sequence[Head], held: Tensor, truth: Tensor) -> np.ndarray:
    """The answers of a probe, its strength chosen by NLL on the half of the held-out images that it does not answer."""
    logits = [head.logits(held) for head in heads]
    half = torch.arange(len(truth)) % 2
    answers = torch.empty_like(truth)
    for mine in (0, 1):
        here, there = half == mine, half != mine
        nll = [cross_entropy(one[there], truth[there]).item() for one in logits]
        best = logits[int(np.argmin(nll))]
        answers[here] = best[here].argmax(1)
    return answers.numpy()


def _own(logits: Tensor, index: np.ndarray) -> np.ndarray:
    place = np.full(logits.shape[1], -2, np.int64)
    place[index] = np.arange(len(index))
    return place[logits.argmax(1).numpy()]
