"""Hard labels: mixed, smoothed, missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import CrossEntropy, TermBatch, dominant_labels, hard_label_loss
from tutelage.distillation.losses.labels import class_weights
from tutelage.distillation.outputs import Outputs

LABELS = torch.tensor([0, 3, 1, 2, 4, 4])
OTHERS = torch.tensor([1, 3, 2, 0, 0, 1])


@pytest.fixture
def logits() -> torch.Tensor:
    return (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()


def test_plain_is_cross_entropy(logits: torch.Tensor) -> None:
    assert torch.equal(hard_label_loss(logits, LABELS), F.cross_entropy(logits, LABELS, reduction="sum") / 6)


@settings(max_examples=30, deadline=None)
@given(lam=st.floats(0, 1), smoothing=st.floats(0, 0.9), seed=st.integers(0, 2**31))
def test_mixed_and_smoothed_is_cross_entropy_with_the_mixed_target(
    lam: float, smoothing: float, seed: int
) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double() * 3
    one_hot = [np.eye(5)[labels.numpy()] for labels in (LABELS, OTHERS)]
    target = (1 - smoothing) * (lam * one_hot[0] + (1 - lam) * one_hot[1]) + smoothing / 5
    z = logits.numpy()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = -(target * log_p).sum(1).mean()
    assert hard_label_loss(logits, LABELS, OTHERS, lam, smoothing).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unlabelled_rows_are_ignored(logits: torch.Tensor, smoothing: float) -> None:
    some = LABELS.clone()
    some[[1, 4]] = -1
    loss = hard_label_loss(logits, some, smoothing=smoothing)
    kept = some >= 0
    assert loss.item() == pytest.approx(hard_label_loss(logits[kept], some[kept], smoothing=smoothing).item())
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[~kept] == 0).all()


def test_a_half_labelled_mixture_counts_by_its_labelled_half(logits: torch.Tensor) -> None:
    others = OTHERS.clone()
    others[0] = -1
    rows = [F.cross_entropy(logits, labels, reduction="none") for labels in (LABELS, OTHERS)]
    expected = (0.7 * rows[0].sum() + 0.3 * rows[1][1:].sum()) / (6 * 0.7 + 5 * 0.3)
    assert hard_label_loss(logits, LABELS, others, lam=0.7).item() == pytest.approx(expected.item())


def test_batch_without_labels_gives_zero_with_a_graph(logits: torch.Tensor) -> None:
    missing = torch.full_like(LABELS, -1)
    loss = hard_label_loss(logits, missing, missing, lam=0.3, smoothing=0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_float32_under_bf16_autocast_and_finite_at_margin_100() -> None:
    wide = torch.tensor([[100.0, 0.0], [0.0, 100.0]]).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = hard_label_loss(wide, torch.tensor([1, 1]), smoothing=0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((95 + 5) / 2)
    assert wide.grad is not None
    assert wide.grad.isfinite().all()


def test_labels_of_another_length_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(TutelageError, match=r"labels \(5,\) do not fit logits \(6, 5\)"):
        hard_label_loss(logits, LABELS[:5])


def test_dominant_labels_are_those_of_the_larger_share() -> None:
    assert torch.equal(dominant_labels(LABELS, OTHERS, 0.6), LABELS)
    assert torch.equal(dominant_labels(LABELS, OTHERS, 0.5), LABELS)
    assert torch.equal(dominant_labels(LABELS, OTHERS, 0.4), OTHERS)


# --- classes of very different size ---------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    lam=st.floats(0, 1),
    smoothing=st.floats(0, 0.9),
    seed=st.integers(0, 2**31),
    missing=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_weighted_mixed_and_smoothed_is_the_sum_over_images_in_float64(
    lam: float, smoothing: float, seed: int, missing: list[bool]
) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double() * 3
    weights = np.array([0.2, 3.0, 1.0, 0.7, 1.5])
    labels = [np.where(missing, -1, LABELS.numpy()), OTHERS.numpy()]
    z = logits.numpy()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    total = shares = 0.0
    for share, target in zip((lam, 1 - lam), labels, strict=True):
        for row, label in enumerate(target):
            if label >= 0:
                cross = (1 - smoothing) * log_p[row, label] + smoothing * log_p[row].mean()
                total -= share * weights[label] * cross
                shares += share
    found = hard_label_loss(
        logits,
        torch.from_numpy(labels[0]),
        torch.from_numpy(labels[1]),
        lam,
        smoothing,
        torch.from_numpy(weights),
    )
    assert found.item() == pytest.approx(total / shares if shares else 0.0, rel=1e-9)


def test_class_weights_are_inverse_to_the_number_of_images() -> None:
    counts = np.array([1000, 10, 1, 0, 89])
    labels = torch.from_numpy(np.repeat([0, 1, 2, 4, -1], [1000, 10, 1, 89, 7]))
    balanced = class_weights("balanced", labels, 5).double().numpy()
    assert balanced == pytest.approx(
        1100 / 4 / np.maximum(counts, 1), rel=1e-6
    )  # a class without images as one of one
    effective = class_weights("effective", labels, 5).double().numpy()
    # the effective number of n images as Cui et al. define it: 1 + β + ... + β^(n - 1)
    numbers = np.array([sum(0.999**i for i in range(max(1, n))) for n in counts])
    raw = 1 / numbers
    assert effective == pytest.approx(raw * 1100 / (raw * counts).sum(), rel=1e-6)
    assert effective[1] / effective[0] < balanced[1] / balanced[0]
    for weights in (balanced, effective):
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1)


def test_classes_of_one_size_have_no_weights_that_matter(logits: torch.Tensor) -> None:
    labels = torch.arange(5).repeat(7)
    for kind in ("balanced", "effective"):
        assert class_weights(kind, labels, 5).tolist() == pytest.approx([1.0] * 5)  # type: ignore[arg-type]


def test_a_term_with_class_weights_says_so(logits: torch.Tensor) -> None:
    """Trials of a study share a control only where its description is the same."""
    plain, weighted = CrossEntropy(), CrossEntropy()
    weighted.weigh_classes("balanced", torch.tensor([0, 0, 0, 1, 2, 3, 4]), 5)
    assert "balanced" in repr(weighted)
    assert "weight" not in repr(plain).replace("weight=1.0", "")
    assert plain.state_dict() == weighted.state_dict() == {}
    batch = TermBatch(Outputs(logits), None, LABELS, LABELS)
    expected = hard_label_loss(logits, LABELS, class_weights=weighted.class_weights)
    assert weighted(batch).item() == expected.item() != plain(batch).item()
