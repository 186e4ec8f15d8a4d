"""Which labels are named as doubtful, and that no test image takes part in the fits."""

from __future__ import annotations

import numpy as np
import torch
from cleanlab.filter import find_label_issues

from tutelage.pipeline.doctor.labels import RULE, out_of_fold, suspects


def test_only_labels_less_likely_than_a_blind_guess_are_named() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 2000)
    logits = rng.normal(size=(2000, 5)) + 0.7 * np.eye(5)[labels]  # a probe that is often wrong itself
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = shares[np.arange(2000), labels]
    alone = find_label_issues(labels, shares, filter_by=RULE, n_jobs=1)
    assert (own[alone] >= 0.2).any()
    found = suspects(labels, shares)
    assert {*found} == {*np.flatnonzero(alone & (own < 0.2)).tolist()}
    assert (np.diff(own[found]) >= 0).all()  # the least likely first


def test_each_image_is_judged_by_a_head_that_has_not_seen_it_and_test_images_are_fitted_to_by_none() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    features = torch.from_numpy(rng.normal(size=(120, 8)) + 2 * np.eye(3, 8)[labels]).float()
    fitted = np.arange(120) % 4 != 0
    found = out_of_fold(features, labels, fitted, 3)
    assert np.allclose(found.sum(1), 1)
    assert (found.argmax(1) == labels).mean() > 0.8
    wrong = np.where(fitted, labels, (labels + 1) % 3)  # of the test images alone
    assert np.array_equal(out_of_fold(features, wrong, fitted, 3)[fitted], found[fitted])
    changed = labels.copy()
    changed[1] = 2  # an image that is fitted to: its own judge has not seen it
    again = out_of_fold(features, changed, fitted, 3)
    assert not np.allclose(again[fitted], found[fitted])
    assert again[1].argmax() == 0
