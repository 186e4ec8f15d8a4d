"""Entropy, confidence and calibration of a teacher's soft targets."""

from __future__ import annotations

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

WIDEST = 3.0  # natural logarithm of the highest temperature tried, and minus that of the lowest


def entropy(logits: Tensor, temperature: float) -> float:
    """Mean entropy in nats of softened targets (N, C); near 0, they contain no more than the labels."""
    return float(torch.special.entr(torch.softmax(logits / temperature, dim=1)).sum(1).mean())


def confidence(logits: Tensor) -> float:
    """Mean probability of the top class of logits (N, C), in percent."""
    return 100 * float(logits.softmax(1).amax(1).mean())


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which logits (N, C) have the lowest NLL on labels (N,); -1: not labelled, left out.

    Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks"). Below 1 the model is
    under-confident, as after label smoothing, mixup or BCE; above 1 it is over-confident.
    """
    labelled = labels >= 0
    known, truth = logits[labelled].double(), labels[labelled]

    def nll(log_temperature: float) -> float:
        return float(cross_entropy(known / torch.tensor(log_temperature).exp(), truth))

    found = minimize_scalar(nll, bounds=(-WIDEST, WIDEST), method="bounded", options={"xatol": 1e-3})
    return float(torch.tensor(found.x).exp())
