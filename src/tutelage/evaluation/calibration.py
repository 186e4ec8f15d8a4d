"""Entropy, confidence and calibration of a teacher's soft targets."""

from __future__ import annotations

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

WIDEST = 3.0  # natural logarithm of the highest temperature tried, and minus that of the lowest
CALIBRATING = 1000  # images that find the temperature of a calibrated NLL, at most


def entropy(logits: Tensor, temperature: float) -> float:
    """Mean entropy in nats of softened targets (N, C); near 0, they contain no more than the labels."""
    return float(torch.special.entr(torch.softmax(logits / temperature, dim=1)).sum(1).mean())


def confidence(logits: Tensor) -> float:
    """Mean probability of the top class of logits (N, C), in percent."""
    return 100 * float(logits.softmax(1).amax(1).mean())


def calibrating_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that calibrates logits (N, C) on labels (N,); -1: not labelled, left out; 1 where none is.

    It is `best_temperature` with one more image, whose label is uniformly distributed: without it, a model that
    classifies all images of a small set correctly would have a temperature of nearly 0.
    """
    labelled = labels >= 0
    if not labelled.any():
        return 1.0
    return _fitted(logits[labelled].double(), labels[labelled], 1 / (1 + int(labelled.sum())))


def calibrated_nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log likelihood in nats of logits (N, C) on labels (N,) after they were calibrated on them.

    Unlike the NLL itself it does not favour a model for its confidence alone (Ashukha et al. 2020, "Pitfalls of
    in-domain uncertainty estimation and ensembling in deep learning"). At most 1,000 images find the temperature.
    """
    labelled = labels >= 0
    logits, labels = logits[labelled].double(), labels[labelled]
    some = torch.linspace(0, len(labels) - 1, min(len(labels), CALIBRATING)).long()
    return float(cross_entropy(logits / calibrating_temperature(logits[some], labels[some]), labels))


def matching_temperature(logits: Tensor, target: float, bounds: tuple[float, float]) -> float:
    """The temperature at which the mean entropy of logits (N, C) is `target` nats, within bounds."""
    low, high = bounds
    if entropy(logits, low) >= target:
        return low
    if entropy(logits, high) <= target:
        return high
    return float(brentq(lambda t: entropy(logits, t) - target, low, high, xtol=1e-3))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which logits (N, C) have the lowest NLL on labels (N,); -1: not labelled, left out.

    Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks"). Below 1 the model is
    under-confident, as after label smoothing, mixup or BCE; above 1 it is over-confident.
    """
    labelled = labels >= 0
    return _fitted(logits[labelled].double(), labels[labelled], 0.0)


def _fitted(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    def nll(log_temperature: float) -> float:
        scaled = logits / torch.tensor(log_temperature).exp()
        return float(cross_entropy(scaled, labels, label_smoothing=smoothing))

    found = minimize_scalar(nll, bounds=(-WIDEST, WIDEST), method="bounded", options={"xatol": 1e-3})
    return float(torch.tensor(found.x).exp())
