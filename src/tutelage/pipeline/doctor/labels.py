"""Labels that may be wrong: a probe that has not seen an image is sure of another class (confident learning)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime
from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.finding import Finding, Item, alone
from tutelage.data.doctor.pictures import Pictures
from tutelage.data.loading import BadImages, Loading
from tutelage.distillation.probe import IMAGES, BelowHead, can_be_probed, fit_heads
from tutelage.evaluation import resolution
from tutelage.evaluation.predict import predict_together
from tutelage.models import precision
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.doctor.steps import Steps

FOLDS = 5
# Of those tried with 5% of the labels wrong, these had the best precision at about equal recall: scikit-learn's C from
# 0.0003 to 0.1, and cleanlab's five rules. Benchmark: benchmarks/label_suspects.py.
STRENGTH = 0.003
RULE = "low_normalized_margin"
BATCH = 32  # images; larger batches do not fit into a processor's caches
LOWEST = 128  # pixels; pictures smaller than the network's own input are not enlarged beyond this
INSTALL = "cleanlab is not installed; run `pip install 'tutelage[clean]'`"


class CannotJudge(TutelageError):  # noqa: N818 - the other findings are reported all the same
    """Labels cannot be checked; the message says why and what to do."""


@dataclass(frozen=True)
class Judged:
    """What a probe makes of M labelled images.

    Attributes:
        numbers: (M,) of the images in the collection.
        labels: (M,) int64, place of the label in `classes`.
        probabilities: (M, C) float64, by heads that have not seen the image.
        classes: (C,) labels that are judged: those with at least `FOLDS` images.
    """

    numbers: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray


def label_findings(
    images: Collection, pictures: Pictures, model: str, device: str | None, say: Callable[[str], object]
) -> list[Finding]:
    """Find images whose labels may be wrong, the most doubtful first.

    A linear probe of a pretrained network is fitted in folds, and each training or val image is judged by the head that
    has not seen it; test images are judged by all of these, and none is fitted to them. Confident learning (Northcutt
    et al. 2021, "Confident learning: estimating uncertainty in dataset labels") then estimates how many labels of each
    class are wrong, and names the least likely ones.

    Args:
        images: all of them.
        pictures: which of them can be decoded.
        model: NAME@WEIGHTS.
        device: ``cpu``, ``mps``, ``cuda`` or ``cuda:1``; None: the best there is.
        say: receives a line before each step.

    Raises:
        CannotJudge: cleanlab is missing, the network cannot be used, or there are too few labelled images.
    """
    judged = judge(images, pictures, model, device, say)
    text = (
        f"A linear probe of {model} that had not seen the image is sure of another class. It is often right and "
        "sometimes wrong: look at them, then correct or leave out the wrong ones. The list has them as comments."
    )
    items = [_item(judged, place, images) for place in suspects(judged.labels, judged.probabilities)]
    return alone("labels", "Label may be wrong", "look", text, items)


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Return the places of labels that confident learning finds to be wrong, the least likely label first.

    Only labels that are less likely than a blind guess are named: where the probe is often wrong itself, as with 200
    similar classes, confident learning alone names a sixth of all images, and four of five of these labels are right.

    Args:
        labels: (M,) int64.
        probabilities: (M, C) float64, of images that the model was not fitted to.
    """
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_label_issues(
            labels, probabilities, filter_by=RULE, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    chance = 1 / probabilities.shape[1]
    return [int(place) for place in found if probabilities[place, labels[place]] < chance]


def judge(
    images: Collection, pictures: Pictures, model: str, device: str | None, say: Callable[[str], object]
) -> Judged:
    """Return what the probes make of all labelled images; arguments and errors as of `label_findings`."""
    if not find_spec("cleanlab"):
        raise CannotJudge(INSTALL)  # before the features are computed
    usable = pictures.readable & (images.labels >= 0)
    fitted = usable & np.isin(images.roles, ("train", "val"))
    counts = np.bincount(images.labels[fitted], minlength=len(images.classes))
    classes = np.flatnonzero(counts >= FOLDS)
    if len(classes) < 2:
        raise CannotJudge(f"fewer than two classes have {FOLDS} labelled images or more")
    numbers = np.flatnonzero(usable & np.isin(images.labels, classes))
    labels = np.searchsorted(classes, images.labels[numbers])
    features = features_of(images, numbers, pictures, model, device, say)
    say(f"fitting {FOLDS} linear probes to {len(numbers):,} images")
    probabilities = out_of_fold(features, labels, fitted[numbers], len(classes))
    return Judged(numbers, labels, probabilities, classes)


def features_of(
    images: Collection,
    numbers: np.ndarray,
    pictures: Pictures,
    spec: str,
    device: str | None,
    say: Callable[[str], object],
) -> Tensor:
    """Return the features (M, D) of some images.

    Args:
        images: all of them.
        numbers: (M,) of the wanted ones.
        pictures: their sizes.
        spec: NAME@WEIGHTS of the network.
        device: ``cpu``, ``mps``, ``cuda`` or ``cuda:1``; None: the best there is.
        say: receives a line before each step.

    Raises:
        CannotJudge: the network cannot be loaded, or has nothing to offer.
    """
    runtime = Runtime.start(device)
    try:
        model = load_model(spec)
    except TutelageError as error:
        raise CannotJudge(str(error)) from None
    if not model.pretrained or not can_be_probed(model):
        why = "random weights" if not model.pretrained else "a head that is not one linear layer"
        raise CannotJudge(
            f"{spec} has {why}; name another network with --model, such as tf_efficientnet_lite0"
        )
    model = _fitting(model, pictures)
    network = BelowHead(model).to(runtime.device)
    runtime = replace(
        runtime,
        precision=precision.faster(
            precision.probe_inference(network, model.input_spec, BATCH, runtime.device)
        ),
    )
    subset = images.subset()
    subset = replace(subset, indices=subset.indices[numbers])
    with runtime.autocast():
        (found,) = predict_together(
            [(network, model.input_spec)],
            subset,
            runtime,
            Loading(bad=BadImages(0)),
            batch_size=BATCH,
            on_batch=Steps(say, "features of", len(numbers)),
        )
    return found.logits


def _fitting(model: Model, pictures: Pictures) -> Model:
    """The model at a lower resolution where the pictures are small: enlarging them takes time and shows no more."""
    shorter = np.minimum(pictures.width, pictures.height)[pictures.readable]
    own = model.input_spec.height
    return model if np.median(shorter) >= LOWEST or own <= LOWEST else resolution.at(model, LOWEST)


def out_of_fold(features: Tensor, labels: np.ndarray, fitted: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities (M, C): of an image that heads are fitted to by the head without it, of others by all.

    Args:
        features: (M, D).
        labels: (M,) int64, of `classes` classes.
        fitted: (M,) bool, the images that heads are fitted to.
        classes: number of classes; each has at least `FOLDS` of these.
    """
    from sklearn.model_selection import StratifiedKFold

    places = np.flatnonzero(fitted)
    result = torch.zeros(len(labels), classes, dtype=torch.float64)
    for ours, theirs in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(places, labels[places]):
        seen = places[ours[np.linspace(0, len(ours) - 1, min(len(ours), IMAGES)).round().astype(int)]]
        (head,) = fit_heads(features[seen], torch.from_numpy(labels[seen]), classes, (STRENGTH,))
        unseen = places[theirs]
        result[unseen] = head.logits(features[unseen]).double().softmax(1)
        others = np.flatnonzero(~fitted)
        result[others] += head.logits(features[others]).double().softmax(1) / FOLDS
    return result.numpy()


def _item(judged: Judged, place: int, images: Collection) -> Item:
    number = int(judged.numbers[place])
    best = int(judged.probabilities[place].argmax())
    why = f"looks like {images.classes[judged.classes[best]]} ({judged.probabilities[place, best]:.0%})"
    reason = "" if images.roles[number] == "test" else f"labelled {images.class_of(number)}, {why}"
    return Item(number, why, reason, certain=False)
