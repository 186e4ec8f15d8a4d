"""A linear probe: logistic regression on the frozen features of a network, taken as its head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.data.splits import Subset, sample
from tutelage.distillation.checkpoint import load_checkpoint
from tutelage.evaluation.predict import Predictions, predict_logits
from tutelage.models.heads import head_layers
from tutelage.models.source import Model

STRENGTHS = (
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
)  # scikit-learn's C, from the strongest regularisation to the weakest
IMAGES = 20_000  # at most; the features of more would change the head little and take minutes
RARE = 20.0  # by so much the logit of a class without an image lies below the others
STEPS = 200  # of L-BFGS, at most


@dataclass(frozen=True)
class Head:
    """A linear layer that was fitted to features.

    Attributes:
        weight: (C, D) float32.
        bias: (C,) float32.
        strength: scikit-learn's C.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (N, C) of features (N, D)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Probe:
    """A head that was fitted to features.

    Attributes:
        weight: (C, D) float32.
        bias: (C,) float32.
        strength: scikit-learn's C, chosen on val by NLL.
        top1: percent of val.
        nll: nats, on val.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    top1: float
    nll: float

    def put_on(self, model: Model) -> Model:
        """Return a copy of a model with this head."""
        copy = model.copied()
        (head,) = head_layers(copy.module, copy.num_classes)
        with torch.no_grad():
            weight = head.get_parameter("weight")
            weight.copy_(self.weight.view_as(weight))
            head.get_parameter("bias").copy_(self.bias)
        return copy


def load_probe(path: Path) -> Probe:
    """Read a probe that a run has fitted.

    Raises:
        TutelageError: the file is damaged.
    """
    groups, meta = load_checkpoint(path)
    head = groups["head"]
    return Probe(head["weight"], head["bias"], meta["strength"], meta["top1"], meta["nll"])


def can_be_probed(model: Model) -> bool:
    """Tell whether the head is one linear layer with a bias, so that a probe can take its place."""
    layers = head_layers(model.module, model.num_classes)
    return (
        len(layers) == 1
        and isinstance(layers[0], nn.Linear | nn.Conv2d)
        and {name for name, _ in layers[0].named_parameters()} == {"weight", "bias"}
        and layers[0].weight[0].numel() == layers[0].weight.shape[1]
    )


def fit_probe(
    model: Model, train: Subset, val: Subset, head_index: np.ndarray, runtime: Runtime, loading: Loading
) -> Probe:
    """Fit a linear probe: features of un-augmented images, standardised, and multinomial logistic regression.

    Its strength is the one with the lowest NLL on val. A probe is what a fine-tuned network has to beat (Kornblith et
    al. 2019, "Do better ImageNet models transfer better?"), and a better place to fine-tune from than a new head (Kumar
    et al. 2022, "Fine-tuning can distort pretrained features").

    Args:
        model: pretrained; see `can_be_probed`. It stays as it is.
        train: images to fit on; those without a label are left out, and of very many a sample is taken.
        val: labelled images, by which the strength is chosen.
        head_index: (data classes,) index in the head of each class of the data; every class of the head is one of
            these.
        runtime: device and processes; the first process fits, and all get its probe.
        loading: how images are loaded.
    """
    ours, labels = _features(model, sample(train, IMAGES), head_index, runtime, loading)
    theirs, truth = _features(model, val, head_index, runtime, loading)
    return runtime.on_main(lambda: _best(ours, labels, theirs, truth, model.num_classes))


def fit_heads(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float] = STRENGTHS
) -> list[Head]:
    """Fit a head to features with each of some strengths of regularisation.

    Args:
        features: (N, D) float32, not standardised.
        labels: (N,) int64 classes; two or more different ones.
        classes: outputs of the head; one without an image is never predicted.
        strengths: scikit-learn's C.
    """
    mean, std = features.mean(0), features.std(0)
    # A feature that hardly varies is not blown up to the size of the others: its weight would be so large that the
    # first steps of a fit, which move the features, send the loss far above that of a guess.
    std = std.clamp_min(std.square().mean().sqrt().clamp_min(1e-6))
    heads = []
    found = _regressions((features - mean) / std, labels, classes, strengths)
    for strength, (coefficients, intercept) in zip(strengths, found, strict=True):
        weight = coefficients / std  # the standardisation becomes part of the head
        heads.append(Head(weight, intercept - weight @ mean, strength))
    return heads


def _best(features: Tensor, labels: Tensor, val: Tensor, truth: Tensor, classes: int) -> Probe:
    best: Probe | None = None
    for head in fit_heads(features, labels, classes):
        logits = head.logits(val)
        nll = cross_entropy(logits, truth).item()
        top1 = 100 * (logits.argmax(1) == truth).float().mean().item()
        if best is None or nll < best.nll:
            best = Probe(head.weight, head.bias, head.strength, top1, nll)
    assert best is not None
    return best


def _regressions(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Fit (C, D) coefficients and (C,) intercepts for each strength; a class without an image is never predicted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = []
    for strength in strengths:
        regression = LogisticRegression(C=strength, max_iter=STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a probe that is nearly converged serves as well
            warnings.filterwarnings("ignore", "The number of unique classes")  # of few labels
            regression.fit(features.double().numpy(), labels.numpy())
        there = regression.classes_
        coefficients = np.zeros((classes, features.shape[1]))
        intercept = np.full(classes, regression.intercept_.min() - RARE)
        if len(there) == 2:  # scikit-learn gives one row: the second class against the first
            coefficients[there[1]], intercept[there] = regression.coef_[0], (0.0, regression.intercept_[0])
        else:
            coefficients[there], intercept[there] = regression.coef_, regression.intercept_
        found.append((torch.from_numpy(coefficients).float(), torch.from_numpy(intercept).float()))
    return found


def features_of(model: Model, subset: Subset, runtime: Runtime, loading: Loading) -> Predictions:
    """Compute the input of a model's head (N, D), in place of logits, for un-augmented images."""
    network = BelowHead(model).to(runtime.device)
    return predict_logits(network, model.input_spec, subset, runtime, loading)


def _features(
    model: Model, subset: Subset, head_index: np.ndarray, runtime: Runtime, loading: Loading
) -> tuple[Tensor, Tensor]:
    """Compute the input of the head (N, D) for each labelled image; also return the labels (N,) as its classes."""
    found = features_of(model, subset, runtime, loading)
    labels = torch.from_numpy(subset.labels)[found.index]
    labelled = labels >= 0
    return found.logits[labelled], torch.from_numpy(head_index)[labels[labelled]]


class BelowHead(nn.Module):
    """A network that returns the input of its head (B, D) in place of the logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.module
        (self.head,) = head_layers(model.module, model.num_classes)
        self.train(model.module.training)  # the network's mode is put back after a prediction

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of normalised images (B, 3, H, W)."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return seen[0].flatten(1)
