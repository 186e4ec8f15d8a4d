import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor

from tutelage.evaluation.fidelity import FIDELITY, fidelity
from tutelage.evaluation.quality import Quality, is_unbalanced, macro_recall, merit, over_classes, quality


def by_hand(logits: np.ndarray, labels: np.ndarray) -> Quality:
    """The definitions, in NumPy and float64."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    confidence, right = np.exp(log_p.max(1)), order[:, 0] == labels
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(15)]
    return Quality(
        top1=100 * right.mean(),
        top5=100 * (order[:, :5] == labels[:, None]).any(1).mean(),
        nll=-log_p[np.arange(len(labels)), labels].mean(),
        ece=100 * sum(gaps) / len(labels),
        n=len(labels),
    )


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n, classes = draw(st.integers(1, 60)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 8.0]))
    return (
        torch.randn(n, classes, generator=generator) * scale,
        torch.randint(classes, (n,), generator=generator),
    )


@settings(max_examples=60, deadline=None)
@example((torch.tensor([[-1.5, 15.6], [3.0, 1.0]]), torch.tensor([0, 0])))  # a confidence of exactly 1
@given(answers())
def test_figures_are_those_of_the_definitions(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    mine, theirs = quality(logits, labels), by_hand(logits.numpy(), labels.numpy())
    assert mine.top1 == pytest.approx(theirs.top1)
    assert mine.top5 == pytest.approx(theirs.top5)
    assert mine.nll == pytest.approx(theirs.nll, rel=1e-4, abs=1e-5)
    assert mine.ece == pytest.approx(theirs.ece, abs=1e-2)
    assert mine.n == theirs.n


@settings(max_examples=30, deadline=None)
@given(answers(), st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(case: tuple[Tensor, Tensor], constant: float) -> None:
    logits, labels = case
    moved = (logits.double() + constant).float()
    assert quality(moved, labels).nll == pytest.approx(quality(logits, labels).nll, abs=1e-3)


def test_accuracies_are_exact_shares() -> None:
    logits = torch.eye(3)[[0, 1, 2]]
    assert quality(logits, torch.tensor([0, 1, 0])).top1 == 100 * 2 / 3


def test_sure_and_right_or_sure_and_wrong() -> None:
    logits = 100 * torch.eye(4)
    right, wrong = quality(logits, torch.arange(4)), quality(logits, torch.arange(4).roll(1))
    assert (right.top1, right.nll) == (100, 0)
    assert (wrong.top1, wrong.nll) == (0, 100)
    # in points; a confidence of 1 counts as the largest float below it
    assert (right.ece, wrong.ece) == pytest.approx((0, 100), abs=1e-5)


def test_images_without_label_do_not_count() -> None:
    logits = torch.randn(10, 6)
    labels = torch.tensor([0, 1, 2, 3, 4, -1, -1, -1, -1, -1])
    assert quality(logits, labels) == quality(logits[:5], labels[:5])
    with pytest.raises(ValueError, match="no labelled image"):
        quality(logits, torch.full((10,), -1))


def test_half_precision_logits_are_weighed_in_float32() -> None:
    logits = torch.tensor([[30000.0, 0.0], [0.0, 30000.0]], dtype=torch.float16)
    assert quality(logits, torch.tensor([0, 1])).nll == 0


def test_over_some_classes() -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0, 3.0]])
    assert over_classes(logits, torch.tensor([3, 0])).tolist() == [[3.0, 1.0]]


def test_macro_recall_counts_each_class_alike() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2 + [-1])
    logits = torch.zeros(11, 4)
    logits[:, 0] = 1  # always the large class
    assert quality(logits, labels).top1 == 80.0
    assert macro_recall(logits, labels) == 50.0
    logits[8, 1] = 2
    assert macro_recall(logits, labels) == 75.0
    with pytest.raises(ValueError, match="no labelled image"):
        macro_recall(logits, torch.full((11,), -1))


@settings(max_examples=30, deadline=None)
@given(answers())
def test_macro_recall_is_the_mean_of_the_recalls(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    here = labels.unique()
    each = [(logits[labels == c].argmax(1) == c).double().mean() for c in here]
    assert macro_recall(logits, labels) == pytest.approx(100 * torch.stack(each).mean().item())


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([4, 4], False), ([4, 8], False), ([4, 9], True), ([9], False), ([5, 0, 5], False), ([], False)],
)
def test_unbalanced_is_more_than_twice_as_many(counts: list[int], expected: bool) -> None:
    labels = torch.tensor([-1, *(c for c, n in enumerate(counts) for _ in range(n))])
    assert is_unbalanced(labels) is expected


def test_a_student_without_finite_logits_is_the_least_like_its_teacher() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    broken, poor = fidelity(torch.full((2, 2), torch.nan), teacher), fidelity(-teacher, teacher)
    assert np.isnan(broken.kl)
    assert fidelity(teacher, teacher).kl == 0
    merits = [merit({FIDELITY: one.kl, "agreement": one.agreement}, FIDELITY) for one in (broken, poor)]
    assert merits[0] < merits[1]


def test_not_a_number_is_the_worst_of_each_metric() -> None:
    broken, poor = {"top1": 50.0, "nll": np.nan}, {"top1": 50.0, "nll": 9.0}
    assert merit(broken, "nll") < merit(poor, "nll")
    assert merit(broken, "top1") < merit(poor, "top1")
    assert merit(poor, "nll") == (-9.0, 50.0)
