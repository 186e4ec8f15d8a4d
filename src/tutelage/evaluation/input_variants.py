"""Faults in how a teacher is described, found by its accuracy: how its images are made, and the order of its classes.

No file tells whether its network was trained on images with the blue channel first, on pixels of 0 to 255 or with
another mean: such a network runs, and its answers are merely bad. So the network is tried on labelled images with
other inputs, and its outputs with another order of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading
from tutelage.data.subset import Subset
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.predict import Predictions, predict_together
from tutelage.models.kinds.fixed import FixedNetwork
from tutelage.models.kinds.transformers import LogitsOf
from tutelage.models.source import Model

DESCRIPTIONS = "teacher_descriptions"  # key of preflight.json
FIRST = 64  # images on which all inputs are tried
IMAGES = 256  # images for those inputs that are better on the first ones
MARGIN = 5.0  # points of top-1 that a fault costs at least; smaller ones are not looked for
LEVEL = 0.01  # significance of all tests of a teacher together (Holm 1979)
SAME = 0.05  # two inputs with a larger p are not told apart, and the simpler one is taken
PER_CLASS = 3  # images of each class, on average, that an order of the classes is fitted to
LEFT = (
    1 / 3
)  # of the right answers in a new order, the most that the given order has in the classes that move
CLOSE = 1e-3  # difference of means and stds, on pixels of 0 to 1, that counts as none

NORMALISATIONS = {
    "ImageNet's mean and std": (InputSpec.mean, InputSpec.std),
    "pixels of -1 to 1 (mean and std 0.5)": ((0.5,) * 3, (0.5,) * 3),
    "pixels of 0 to 1 (mean 0, std 1)": ((0.0,) * 3, (1.0,) * 3),
    "pixels of 0 to 255 (mean 0, std 1)": ((0.0,) * 3, (1 / 255,) * 3),
}
CAFFE = (
    "pixels of 0 to 255 less ImageNet's mean"  # of Caffe's networks, and of Keras' that were made of these
)
CAFFE_INPUT = (tuple(m / 255 for m in (103.939, 116.779, 123.68)), (1 / 255,) * 3)  # blue first


@dataclass(frozen=True)
class Variant:
    """Another input of a network.

    Attributes:
        normalisation: other pixels, mean and std in words; empty where they stay as given.
        mean: of each channel that the module gets, of pixels scaled to 0..1.
        std: as `mean`.
        channels: ``BGR`` or ``RGB`` where the network gets its channels in this order and not in the given one, so that
            the first and the last change places; means and stds stay in theirs. Empty where the order is the given one.
    """

    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str

    @property
    def changes(self) -> int:
        """In how many ways the input differs from the given one."""
        return bool(self.normalisation) + bool(self.channels)

    @property
    def words(self) -> str:
        """Describe what differs."""
        parts = [self.normalisation, self.channels and f"the channels in the order {self.channels}"]
        return " and ".join(part for part in parts if part)


@dataclass(frozen=True)
class Fault:
    """What is wrong with the description of a teacher.

    Attributes:
        variant: the input with which it is better; None where the order of the classes is wrong.
        order: (data classes,) int64, the output that fits each class of the data; None where the input is wrong.
        top1: in percent, with the other input or order.
        given: top-1 in percent as the teacher is described, on the same images.
        n: images that both figures are of; no order was fitted to them.
        p: of McNemar's test that both are equally good, corrected for all that was tried (Holm 1979).
        likewise: other inputs that are not shown to be worse than `variant`.
    """

    variant: Variant | None
    order: np.ndarray | None
    top1: float
    given: float
    n: int
    p: float
    likewise: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Probed:
    """What was tried with a teacher, and what was found.

    Attributes:
        inputs: number of other inputs that were tried.
        images: labelled images that they were tried on first.
        order: whether there were enough images to look for another order of the classes.
        fault: None where nothing is better than the teacher as it is described.
    """

    inputs: int
    images: int
    order: bool
    fault: Fault | None


class _WithInput(nn.Module):
    """A network that gets images in another way than they come.

    Args:
        network: the network.
        given: how the images (B, 3, H, W) come.
        variant: how the network gets them.
    """

    def __init__(self, network: nn.Module, given: InputSpec, variant: Variant) -> None:
        super().__init__()
        self.network, self.given, self.variant = network, given, variant
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        mean, std, new_mean, new_std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.given.mean, self.given.std, self.variant.mean, self.variant.std)
        )
        pixels = images * std + mean
        pixels = pixels.flip(1) if self.variant.channels else pixels
        found: Tensor = self.network((pixels - new_mean) / new_std)
        return found


def variants_of(model: Model) -> list[Variant]:
    """List the inputs to try in place of the given one; none for a model that gets something else than pixels."""
    spec = model.input_spec
    if type(spec) is not InputSpec or len(spec.mean) != 3:  # a kind of its own has an input of its own
        return []
    others = {
        name: (mean, std)
        for name, (mean, std) in NORMALISATIONS.items()
        if not np.allclose((mean, std), (spec.mean, spec.std), atol=CLOSE)
    }
    bgr = turns_channels(model)
    new = "RGB" if bgr else "BGR"
    mean, std = CAFFE_INPUT
    return [
        Variant("", spec.mean, spec.std, new),
        *(Variant(name, *values, order) for order in ("", new) for name, values in others.items()),
        Variant(CAFFE, mean[::-1], std, "") if bgr else Variant(CAFFE, mean, std, new),
    ]


def turns_channels(model: Model) -> bool:
    """Whether a model's module gets RGB images and gives them to its network as BGR."""
    return isinstance(model.module, FixedNetwork | LogitsOf) and model.module.bgr


def probe_description(
    model: Model,
    subset: Subset,
    index: np.ndarray,
    given: Predictions,
    runtime: Runtime,
    loading: Loading | None = None,
) -> Probed:
    """Look for an input, or an order of the classes, with which a teacher is clearly better than as it is described.

    All inputs are tried on a few images; those that are better there are tried on more. The order of the classes is
    fitted to one half of the images and tried on the other half. A fault is reported only where the paired test is
    significant after Holm's correction for everything that was tried, the gain is at least `MARGIN` points, and the
    result is better than always naming the most frequent class. So a teacher that is described rightly is hardly ever
    accused. Of several inputs that are not told apart the one with the fewest changes is named.

    Args:
        model: with its own head; its network is on the runtime's device.
        subset: images, some of them labelled.
        index: (data classes,) int64, output of the head for each class of the data.
        given: what the model answers for the subset as it is described.
        runtime: device and processes.
        loading: how images are loaded.
    """
    labels = np.where(subset.labels >= 0, index[subset.labels], -1)
    answers = _classes(given, np.arange(len(subset)), len(subset))
    places = np.flatnonzero((labels >= 0) & (answers >= 0))
    if not len(places) or 100 * np.mean(answers[places] == labels[places]) > 100 - MARGIN:
        return Probed(0, 0, order=False, fault=None)
    variants, judged = variants_of(model), _spread(places, IMAGES)
    first = _spread(judged, FIRST)

    def tried(some: Sequence[Variant], images: np.ndarray) -> list[_Trial]:
        part = replace(subset, indices=subset.indices[images])
        networks = [(_WithInput(model.module, model.input_spec, one), model.input_spec) for one in some]
        found = predict_together(networks, part, runtime, loading) if some else []
        trials = zip(some, (_classes(one, images, len(subset)) for one in found), strict=True)
        return [_Trial.of(new[images], answers[images], labels[images], variant=one) for one, new in trials]

    trials = tried(variants, first)
    trials = tried([one.variant for one in trials if one.variant and one.pair.difference > 0], judged)
    order = len(places) // 2 >= PER_CLASS * len(index)
    if order:
        trials += _reordered(answers[places], subset.labels[places], index)
    most = np.bincount(labels[places]).max() / len(places)
    fault = _clearest(trials, tests=len(variants) + order, floor=100 * most + MARGIN)
    return Probed(len(variants), len(first), order, fault)


@dataclass(frozen=True)
class _Trial:
    """An input or an order that was tried.

    Attributes:
        variant: the input.
        order: as in `Fault`.
        right: (N,) bool, the images that are right with it.
        given: (N,) bool, those that are right as the teacher is described.
        pair: both on the same images.
    """

    variant: Variant | None
    order: np.ndarray | None
    right: np.ndarray
    given: np.ndarray
    pair: Paired

    @classmethod
    def of(
        cls,
        new: np.ndarray,
        given: np.ndarray,
        labels: np.ndarray,
        *,
        variant: Variant | None = None,
        order: np.ndarray | None = None,
    ) -> _Trial:
        """Compare answers (N,), of which -1 is none."""
        known = (new >= 0) & (given >= 0)
        right, before = (answers[known] == labels[known] for answers in (new, given))
        return cls(variant, order, right, before, _paired(right, before))

    @property
    def top1(self) -> float:
        """Top-1 in percent."""
        return 100 * float(self.right.mean())


def _reordered(answers: np.ndarray, labels: np.ndarray, index: np.ndarray) -> list[_Trial]:
    """Fit an order of the classes to every second image, and try it on the others; [] where it is the given one.

    In a wrong order the classes that move have hardly any right answer. Where they have many, the teacher confuses
    classes that are alike, and the order is right.

    Args:
        answers: (N,) outputs with the largest logit.
        labels: (N,) classes of the data.
        index: (data classes,) output of each class.
    """
    order = _fitted_order(answers[::2], labels[::2], index)
    moved = np.flatnonzero(order != index)
    if not len(moved):
        return []
    answers_left, labels_left = answers[1::2], labels[1::2]
    right, given = answers_left == order[labels_left], answers_left == index[labels_left]
    moving = np.isin(labels_left, moved)
    if given[moving].sum() > LEFT * right[moving].sum():
        return []
    pair = _paired(right, given)
    return [_Trial(None, _fitted_order(answers, labels, index), right, given, pair)]


def _fitted_order(answers: np.ndarray, labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the output (data classes,) of each class with which most answers are right; on a tie the given one."""
    counts = np.zeros((len(index), max(int(answers.max()), int(index.max())) + 1))
    np.add.at(counts, (labels, answers), 1)
    counts[np.arange(len(index)), index] += 0.5
    order: np.ndarray = linear_sum_assignment(counts, maximize=True)[1]
    return order


def _clearest(trials: Sequence[_Trial], tests: int, floor: float) -> Fault | None:
    """Return the best trial of those that show a fault; of inputs that are not told apart, the simplest.

    Another order can make up for swapped channels, where classes differ by colour. So an input goes before an order
    that is not better by `MARGIN`.

    Args:
        trials: those that were worth testing.
        tests: number of all that were tried.
        floor: top-1 in percent below which a trial shows nothing.
    """
    corrected = _holm([one.pair.mcnemar_p for one in trials], tests)
    faults = [
        (one, p)
        for one, p in zip(trials, corrected, strict=True)
        if p < LEVEL and one.pair.difference >= MARGIN and one.top1 >= floor
    ]
    if not faults:
        return None
    best, p = max(faults, key=lambda fault: fault[0].top1 + (MARGIN if fault[0].variant else 0))
    likewise: list[Variant] = []
    if best.variant is not None:
        alike = [f for f in faults if f[0].variant and _paired(best.right, f[0].right).mcnemar_p > SAME]
        best, p = min(alike, key=lambda f: (f[0].variant.changes if f[0].variant else 0, -f[0].top1))
        likewise = [f[0].variant for f in alike if f[0].variant and f[0] is not best]
    given = 100 * float(best.given.mean())
    return Fault(best.variant, best.order, best.top1, given, best.pair.n, p, tuple(likewise))


def _holm(ps: Sequence[float], tests: int) -> list[float]:
    """Correct p values for a number of tests, of which those that are not given have a p of 1 (Holm 1979)."""
    rank = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate(np.array(ps)[rank] * (tests - np.arange(len(ps))))
    corrected = np.empty(len(ps))
    corrected[rank] = np.minimum(stepped, 1.0)
    return [float(p) for p in corrected]


def _paired(new: np.ndarray, given: np.ndarray) -> Paired:
    """Compare two models by the images (N,) that each has right."""
    return paired(new.astype(int), given.astype(int), np.ones(len(new), int))


def _classes(found: Predictions, images: np.ndarray, size: int) -> np.ndarray:
    """Return the answer (size,) for each image of a subset; -1 where there is none.

    Args:
        found: for some of its images.
        images: places of these in the subset.
        size: number of images in the subset.
    """
    answers = np.full(size, -1)
    answers[images[found.index.numpy()]] = found.logits.argmax(1).numpy()
    return answers


def _spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many places, evenly spaced."""
    return places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]
