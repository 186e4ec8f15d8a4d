"""Each logit loss against a plain float64 reference, at extreme margins, and against torchdistill."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import (
    TermBatch,
    dist,
    dkd,
    kl,
    kl_top_k,
    logit_mse,
    make_term,
    mean_teacher_logits,
    nkd,
    soft_cross_entropy,
    standardised_kl,
    wttm,
)
from tutelage.distillation.outputs import Outputs

ALL = [
    *("kl", "standardised_kl", "dist", "dkd", "nkd", "wttm", "soft_cross_entropy", "logit_mse"),
    *("mlld", "rld"),
]
Array = np.ndarray
Batch = tuple[Tensor, Tensor, Tensor]
TEMPERATURES = [0.5, 1.0, 4.0]


# --- the formulas, row by row in numpy float64, straight from the papers -------------------------------------


def softmax(z: Array, temperature: float = 1.0) -> Array:
    e = np.exp((z - z.max()) / temperature)
    return e / e.sum()


def divergence(p: Array, q: Array) -> float:
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def ref_kl(s: Array, t: Array, y: Array, T: float) -> float:
    return T**2 * float(
        np.mean([divergence(softmax(b, T), softmax(a, T)) for a, b in zip(s, t, strict=True)])
    )


def ref_standardised_kl(s: Array, t: Array, y: Array, T: float) -> float:
    z = [(x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (s, t)]
    return ref_kl(z[0], z[1], y, T)


def ref_dist(s: Array, t: Array, y: Array, T: float, beta: float = 1.0, gamma: float = 1.0) -> float:
    p, q = (np.stack([softmax(row, T) for row in x]) for x in (s, t))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return T**2 * float(beta * rows + gamma * columns)


def without(z: Array, label: int, temperature: float) -> Array:
    return softmax(np.delete(z, label), temperature)


def ref_dkd(s: Array, t: Array, y: Array, T: float, alpha: float = 1.0, beta: float = 8.0) -> float:
    values = []
    for a, b, label in zip(s, t, y, strict=True):
        p, q = softmax(b, T), softmax(a, T)
        target = divergence(*(np.array([x[label], np.delete(x, label).sum()]) for x in (p, q)))
        others = divergence(without(b, label, T), without(a, label, T))
        values.append(alpha * target + beta * others)
    return T**2 * float(np.mean(values))


def ref_nkd(s: Array, t: Array, y: Array, T: float, gamma: float = 1.5) -> float:
    values = []
    for a, b, label in zip(s, t, y, strict=True):
        target = softmax(b)[label] * np.log(softmax(a)[label])
        others = (without(b, label, T) * np.log(without(a, label, T))).sum()
        values.append(-target - gamma * T**2 * others)
    return float(np.mean(values))


def ref_wttm(s: Array, t: Array, y: Array, T: float) -> float:
    values = []
    for a, b in zip(s, t, strict=True):
        power = softmax(b) ** (1 / T)
        values.append(power.sum() * divergence(power / power.sum(), softmax(a)))
    return float(np.mean(values))


def ref_soft_cross_entropy(s: Array, t: Array, y: Array, T: float) -> float:
    rows = [(softmax(b, T) * np.log(softmax(a, T))).sum() for a, b in zip(s, t, strict=True)]
    return -(T**2) * float(np.mean(rows))


def ref_logit_mse(s: Array, t: Array, y: Array, T: float) -> float:
    return float(np.mean((s - t) ** 2))


def ref_mlld(s: Array, t: Array, y: Array, T: float, classes: float = 1.0, batch: float = 1.0) -> float:
    values = []
    for factor in (0.5, 0.75, 1.0, 1.25, 1.5):
        p, q = (np.stack([softmax(row, factor * T) for row in x]) for x in (t, s))
        by_class = ((np.einsum("bi,bj->ij", p, p) - np.einsum("bi,bj->ij", q, q)) ** 2).sum() / s.shape[1]
        by_image = ((np.einsum("ic,jc->ij", p, p) - np.einsum("ic,jc->ij", q, q)) ** 2).sum() / len(s)
        values.append(ref_kl(s, t, y, factor * T) + classes * by_class + batch * by_image)
    return float(np.mean(values))


def ref_rld(
    s: Array,
    t: Array,
    y: Array,
    T: float,
    alpha: float = 1.0,
    beta: float = 8.0,
    label_temperature: float = 1.0,
) -> float:
    values = []
    for a, b, label in zip(s, t, y, strict=True):
        sure, right = softmax(b, label_temperature).max(), softmax(a, label_temperature)[label]
        first = divergence(np.array([sure, 1 - sure]), np.array([right, 1 - right]))
        kept = [c for c in range(len(b)) if b[c] < b[label]]
        second = divergence(softmax(b[kept], T), softmax(a[kept], T)) if kept else 0.0
        values.append(alpha * label_temperature**2 * first + beta * T**2 * second)
    return float(np.mean(values))


REFERENCES: dict[str, Callable[..., float]] = {name: globals()[f"ref_{name}"] for name in ALL}


def batch(rows: int = 12, classes: int = 7, scale: float = 3.0, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=draw) * scale
    teacher = torch.randn(rows, classes, generator=draw) * scale
    return student, teacher, torch.randint(classes, (rows,), generator=draw)


def value(
    name: str, student: Tensor, teacher: Tensor, labels: Tensor, T: float = 1.0, **options: float
) -> Tensor:
    term = make_term(name, options if name == "logit_mse" else {"temperature": T, **options})
    return term(TermBatch(Outputs(student), Outputs(teacher), labels, labels))


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("name", ALL)
def test_agrees_with_float64_reference(name: str, T: float) -> None:
    student, teacher, labels = batch()
    expected = REFERENCES[name](student.double().numpy(), teacher.double().numpy(), labels.numpy(), T)
    # the floors under a standard deviation or a norm, 1e-3 and 1e-4, show in the seventh digit
    assert value(name, student.double(), teacher.double(), labels, T).item() == pytest.approx(
        expected, rel=1e-6
    )
    assert value(name, student, teacher, labels, T).item() == pytest.approx(expected, rel=2e-5)


def test_options_reach_the_formula() -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in batch())
    arrays = student.numpy(), teacher.numpy(), labels.numpy()
    for name, options in [
        ("dist", {"beta": 0.3, "gamma": 2.0}),
        ("dkd", {"alpha": 0.3, "beta": 2.0}),
        ("nkd", {"gamma": 0.3}),
        ("mlld", {"classes": 0.3, "batch": 2.0}),
        ("rld", {"alpha": 0.3, "beta": 2.0, "label_temperature": 3.0}),
    ]:
        expected = REFERENCES[name](*arrays, 2.0, **options)
        assert value(name, student, teacher, labels, 2.0, **options).item() == pytest.approx(
            expected, rel=1e-6
        )


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("name", ["kl", "standardised_kl", "dist", "dkd", "logit_mse", "mlld"])
def test_zero_and_flat_when_student_equals_teacher(name: str, T: float) -> None:
    _, teacher, labels = batch()
    student = teacher.clone().requires_grad_()
    loss = value(name, student, teacher, labels, T)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_known_minima_of_the_others() -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in batch())
    assert wttm(teacher / 3, teacher, temperature=3).item() == pytest.approx(0, abs=1e-12)
    p = (teacher / 3).softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()
    assert soft_cross_entropy(teacher, teacher, temperature=3).item() == pytest.approx(9 * entropy)
    # NKD's infimum: the others matched (whatever the label's logit), the label's probability going to 1
    others = np.array([without(t, y, 3.0) for t, y in zip(teacher.numpy(), labels.numpy(), strict=True)])
    infimum = 1.5 * 9 * -(others * np.log(others)).sum(1).mean()
    sure = teacher + 50 * F.one_hot(labels, teacher.shape[1])
    assert nkd(sure, teacher, labels, temperature=3).item() == pytest.approx(infimum)
    for candidate in (teacher, student, student + 50 * F.one_hot(labels, teacher.shape[1])):
        assert nkd(candidate, teacher, labels, temperature=3).item() > infimum


def test_rld_is_zero_at_a_teacher_that_is_right_and_puts_the_label_first_in_one_that_is_wrong() -> None:
    _, teacher, labels = (x.double() if x.is_floating_point() else x for x in batch())
    best = teacher.argmax(1)
    student = teacher.clone().requires_grad_()
    loss = value("rld", student, teacher, best, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-9
    # its minimum elsewhere: the label as probable as the teacher's first class is, all classes below it as they are
    wrong = teacher[best != labels][:1]
    label = labels[best != labels][:1]
    student = wrong.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([student], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = value("rld", student, wrong, label, 4.0)
        loss.backward()
        return loss

    optimizer.step(step)
    assert value("rld", student, wrong, label, 4.0).item() == pytest.approx(0, abs=1e-8)
    assert student.softmax(1)[0, label].item() == pytest.approx(wrong.softmax(1).max().item(), abs=1e-4)


def test_mlld_relates_very_many_images_in_blocks() -> None:
    student, teacher, labels = batch(rows=1024)
    twice = [torch.cat([x, x]) for x in (student, teacher, labels)]
    assert value("mlld", *twice).item() == pytest.approx(
        value("mlld", student, teacher, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["mlld", "rld"])
def test_one_class_and_one_image_are_finite(name: str) -> None:
    for rows, classes in ((1, 5), (4, 1), (1, 1)):
        student, teacher, labels = batch(rows, classes)
        student.requires_grad_()
        for scale in (1.0, 1e4):
            loss = value(name, scale * student, scale * teacher, labels)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite()
            assert gradient.isfinite().all()


def margins(size: float, classes: int = 6) -> Batch:
    """Student sure of one class, teacher of another, of the same, and of the one that is not the label."""
    student = F.one_hot(torch.tensor([0, 1, 2, 3]), classes).float() * size
    teacher = F.one_hot(torch.tensor([1, 1, 0, 0]), classes).float() * size
    return student + torch.linspace(0, 0.5, classes), teacher, torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize("name", ALL)
def test_finite_and_right_at_margin_100_in_float32(name: str, T: float) -> None:
    student, teacher, labels = margins(100)
    student.requires_grad_()
    loss = value(name, student, teacher, labels, T)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e4
    if name != "dist":  # the teacher's columns are constant here: the plain reference is 0/0
        arrays = student.detach().double().numpy(), teacher.double().numpy(), labels.numpy()
        assert loss.item() == pytest.approx(REFERENCES[name](*arrays, T), rel=1e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_float32_inside_autocast_at_margin_20(name: str, half: torch.dtype) -> None:
    student, teacher, labels = margins(20)
    outside = value(name, student.to(half).float(), teacher.to(half).float(), labels, 2.0)
    student = student.to(half).requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss = value(name, student, teacher.to(half), labels, 2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == outside.item()  # autocast changes nothing
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_finite_gradient_from_a_head_of_zeros(name: str) -> None:
    _, teacher, labels = batch()
    student = torch.zeros_like(teacher, requires_grad=True)
    value(name, student, teacher, labels).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", ALL)
def test_teacher_gets_no_gradient(name: str) -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    teacher.requires_grad_()
    value(name, student, teacher, labels).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_value_s_slope(name: str) -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in batch(rows=4, classes=4))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: value(name, s, teacher, labels, 2.0), student)


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_unlabelled_rows_are_ignored(name: str) -> None:
    student, teacher, labels = batch()
    some = labels.clone()
    some[::3] = -1
    kept = some >= 0
    student.requires_grad_()
    loss = value(name, student, teacher, some)
    loss.backward()
    assert student.grad is not None
    assert (student.grad[~kept] == 0).all()
    assert loss.item() == pytest.approx(
        value(name, student[kept], teacher[kept], labels[kept]).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_batch_without_labels_gives_zero_with_a_graph(name: str) -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    loss = value(name, student, teacher, torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


# --- KL, the one everybody leans on --------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1.0, 2.0, 4.0, 8.0])
def test_kl_is_torch_s_batchmean_times_t_squared(T: float) -> None:
    student, teacher, _ = batch(rows=64, classes=200)
    student, teacher = student.double(), teacher.double()
    target = (teacher / T).softmax(1)
    torch_s = F.kl_div((student / T).log_softmax(1), target, reduction="batchmean") * T**2
    assert abs(kl(student, teacher, T).item() - torch_s.item()) < 1e-6


def test_kl_gradient_keeps_its_size_from_t_1_to_8() -> None:
    student, teacher, _ = batch(rows=64, classes=200)
    student.requires_grad_()
    norms = [torch.autograd.grad(kl(student, teacher, T), student)[0].norm().item() for T in (1, 2, 4, 8)]
    assert max(norms) / min(norms) < 10


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_kl_is_c_times_the_mean_reduction() -> None:
    student, teacher, _ = batch(classes=50)
    wrong = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="mean")
    assert kl(student, teacher).item() == pytest.approx(50 * wrong.item(), rel=1e-4)


def test_mse_is_twice_kl_at_high_temperature() -> None:
    student, teacher, _ = (x.double() for x in batch(scale=1))
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    assert 2 * kl(student, teacher, 1e4).item() == pytest.approx(logit_mse(student, teacher).item(), rel=1e-3)


def test_dkd_with_the_teacher_s_own_beta_is_kl() -> None:
    student, teacher, labels = batch(rows=1)
    beta = 1 - (teacher / 4).softmax(1)[0, labels[0]].item()
    assert dkd(student, teacher, labels, 4, alpha=1, beta=beta).item() == pytest.approx(
        kl(student, teacher, 4).item(), rel=1e-5
    )


def test_wttm_at_t_1_is_kl() -> None:
    student, teacher, _ = batch()
    assert wttm(student, teacher, temperature=1).item() == pytest.approx(
        kl(student, teacher).item(), rel=1e-5
    )


def test_dist_counts_classes_that_are_improbable_in_the_whole_batch() -> None:
    """Scaled by their maximum, columns of 1e-30 still correlate; in plain float32 they would not."""
    student, teacher, _ = batch()
    student[:, 0] -= 70
    teacher[:, 0] -= 70
    expected = ref_dist(student.double().numpy(), teacher.double().numpy(), np.zeros(12), 1.0)
    assert dist(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_dist_of_one_image_has_no_column_term() -> None:
    student, teacher, _ = batch(rows=1)
    rows = dist(student, teacher, gamma=0)
    assert dist(student, teacher, temperature=1, gamma=2).item() == pytest.approx(rows.item() + 2, rel=1e-6)


# --- properties ----------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0])
shapes = {
    "rows": st.integers(2, 9),
    "classes": st.integers(2, 12),
    "scale": st.floats(0.1, 20),
    "seed": seeds,
}
drawn = st.builds(batch, **shapes)
invariant = settings(max_examples=15, deadline=None)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
@invariant
@given(data=drawn, T=temperatures, seed=seeds)
def test_order_of_classes_and_of_images_does_not_matter(name: str, data: Batch, T: float, seed: int) -> None:
    student, teacher, labels = data[0].double(), data[1].double(), data[2]
    before = value(name, student, teacher, labels, T)
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randperm(student.shape[1], generator=draw)
    moved = value(name, student[:, classes], teacher[:, classes], classes.argsort()[labels], T)
    assert close(before, moved)
    rows = torch.randperm(len(student), generator=draw)
    assert close(before, value(name, student[rows], teacher[rows], labels[rows], T))


@pytest.mark.parametrize("name", [name for name in ALL if name != "logit_mse"])
@invariant
@given(data=drawn, T=temperatures, shift=st.floats(-50, 50))
def test_an_offset_of_the_logits_does_not_matter(name: str, data: Batch, T: float, shift: float) -> None:
    student, teacher, labels = data[0].double(), data[1].double(), data[2]
    before = value(name, student, teacher, labels, T)
    per_row = torch.linspace(-1, 1, len(student), dtype=torch.float64).unsqueeze(1)
    assert close(before, value(name, student + shift * per_row, teacher - shift, labels, T))


@invariant
@given(data=drawn, T=temperatures, scale=st.floats(0.5, 50))
def test_standardised_kl_does_not_see_scale(data: Batch, T: float, scale: float) -> None:
    student, teacher = data[0].double() + torch.arange(data[0].shape[1]), data[1].double()
    before, after = standardised_kl(student, teacher, T), standardised_kl(scale * student, teacher, T)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3)


def test_dist_is_zero_at_the_teacher_though_columns_hardly_vary() -> None:
    """A floor that was added under the norms kept the correlation of equal columns below 1."""
    _, teacher, labels = batch(rows=2, classes=2, scale=1.0, seed=2466)
    assert value("dist", teacher, teacher, labels, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
@invariant
@given(data=drawn, T=temperatures)
def test_never_negative_and_least_at_the_teacher(name: str, data: Batch, T: float) -> None:
    student, teacher, labels = data
    here = value(name, student, teacher, labels, T).item()
    assert here >= -1e-6
    if name not in ("nkd", "wttm", "rld"):  # theirs lie elsewhere: test_known_minima_of_the_others
        least = value(name, teacher, teacher, labels, T).item()
        assert here >= least - 1e-5 * (1 + abs(least))


# --- a teacher of which only the largest probabilities were kept ---------------------------------------------


def top_k(teacher: Tensor, k: int, T: float = 1.0) -> tuple[Tensor, Tensor]:
    log_probs, indices = (teacher / T).log_softmax(1).topk(k)
    return indices, log_probs


def test_kl_top_k_agrees_with_the_reference_over_k_plus_one_events() -> None:
    student, teacher, _ = batch()
    indices, log_probs = top_k(teacher, 3, T=2)
    expected = []
    for s, t, kept in zip(student.double().numpy(), teacher.double().numpy(), indices.numpy(), strict=True):
        events = [np.append(x[kept], np.delete(x, kept).sum()) for x in (softmax(t, 2), softmax(s, 2))]
        expected.append(divergence(*events))
    assert kl_top_k(student, indices, log_probs, 2).item() == pytest.approx(4 * np.mean(expected), rel=1e-5)


@invariant
@given(data=drawn, T=temperatures)
def test_kl_top_k_grows_with_k_up_to_the_full_kl(data: Batch, T: float) -> None:
    student, teacher = data[0].double(), data[1].double()
    values = [kl_top_k(student, *top_k(teacher, k, T), T).item() for k in range(1, student.shape[1] + 1)]
    assert values[0] >= -1e-9
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(kl(student, teacher, T).item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_kl_top_k_is_finite_at_margin_100_from_a_half_precision_cache(k: int) -> None:
    student, teacher, _ = margins(100)
    indices, log_probs = top_k(teacher, k)
    student.requires_grad_()
    loss = kl_top_k(student, indices, log_probs.half())
    loss.backward()
    assert loss.item() == pytest.approx(75, rel=0.01)  # the student is sure and wrong in three rows of four
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("k", "rounding"), [(3, 1e-3), (3, -1e-3), (2, 0.2)])
def test_kl_top_k_of_probabilities_that_do_not_sum_to_one(k: int, rounding: float) -> None:
    """As a half-precision cache gives them; with k = 2 the sum passes 1 and the rest would be negative."""
    teacher = torch.tensor([[3.0, 2.0, 1.0]])
    indices, log_probs = top_k(teacher, k)
    kept = teacher.gather(1, indices).log_softmax(1)
    student = teacher if k == 3 else torch.tensor([[kept[0, 0], kept[0, 1], -30]])
    assert kl_top_k(student, indices, log_probs + rounding).item() == pytest.approx(0, abs=1e-6)


def test_kl_top_k_refuses_targets_that_do_not_fit() -> None:
    student, teacher, _ = batch()
    indices, log_probs = top_k(teacher, 3)
    with pytest.raises(TutelageError, match=r"top-k targets \(12, 2\) and \(12, 3\) do not fit"):
        kl_top_k(student, indices[:, :2], log_probs)


# --- several teachers ----------------------------------------------------------------------------------------


def test_mean_of_teachers_is_the_mean_of_their_probabilities() -> None:
    first, second, _ = batch()
    mean = mean_teacher_logits([first, second])
    assert torch.allclose(mean.exp(), (first.softmax(1) + second.softmax(1)) / 2, atol=1e-6)
    assert torch.allclose(mean.softmax(1), mean.exp(), atol=1e-6)  # already normalised: usable as logits
    student = torch.zeros_like(first)
    assert kl(student, mean_teacher_logits([first])).item() == pytest.approx(
        kl(student, first).item(), rel=1e-5
    )


def test_mean_of_teachers_is_finite_at_margin_100_and_in_half_precision() -> None:
    student, teacher, _ = margins(100)
    mean = mean_teacher_logits([student.bfloat16(), teacher.bfloat16()])
    assert mean.dtype == torch.float32
    assert mean.isfinite().all()


def test_mean_of_teachers_refuses_none_and_differing_classes() -> None:
    with pytest.raises(TutelageError, match="at least one teacher"):
        mean_teacher_logits([])
    with pytest.raises(TutelageError, match="same classes"):
        mean_teacher_logits([torch.zeros(2, 3), torch.zeros(2, 4)])


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_heads_of_different_size_are_refused(name: str) -> None:
    with pytest.raises(TutelageError, match=r"\(2, 3\) and teacher logits \(2, 4\).*same classes"):
        value(name, torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(TutelageError, match=r"labels \(3,\) do not fit logits \(2, 4\)"):
        dkd(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))


# --- torchdistill 1.1.5, which has three of these ------------------------------------------------------------
#
# It has no DKD, NKD, WTTM, MLLD, RLD, soft cross-entropy, top-k KL or mean of teachers, nor anything like them.
# Its KDLoss and LogitStdKDLoss are right only when a hard label has a share: with `alpha` None or 0, or without
# targets, they return the KL without T². So they are compared through the path with a label, whose
# cross-entropy is taken off again, and the other path is shown to be what it is. Its DISTLoss underflows in
# float32 for classes improbable in the whole batch, and is compared where there is none.

PATHS = {
    "student_module_path": "x",
    "student_module_io": "output",
    "teacher_module_path": "x",
    "teacher_module_io": "output",
}


@pytest.fixture(scope="module")
def mid_level() -> ModuleType:
    return pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")


def theirs(loss: torch.nn.Module, student: Tensor, teacher: Tensor, *targets: Tensor) -> float:
    return loss({"x": {"output": student}}, {"x": {"output": teacher}}, *targets).item()


@pytest.mark.parametrize("T", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("ours", "peer"), [(kl, "KDLoss"), (standardised_kl, "LogitStdKDLoss")])
def test_kl_and_standardised_kl_agree_with_torchdistill(
    mid_level: ModuleType, ours: Callable[..., Tensor], peer: str, T: float
) -> None:
    student, teacher, labels = batch(rows=32, classes=100)
    loss = getattr(mid_level, peer)(**PATHS, temperature=T, alpha=0.5, beta=1.0)
    soft = theirs(loss, student, teacher, labels) - 0.5 * F.cross_entropy(student, labels).item()
    assert ours(student, teacher, T).item() == pytest.approx(soft, rel=1e-4)
    without_labels = theirs(loss, student, teacher)
    assert ours(student, teacher, T).item() == pytest.approx(without_labels * T**2, rel=1e-4)


@pytest.mark.parametrize("T", [1.0, 2.0, 4.0])
def test_dist_agrees_with_torchdistill(mid_level: ModuleType, T: float) -> None:
    student, teacher, _ = batch(rows=32, classes=20)
    peer = mid_level.DISTLoss(**PATHS, beta=1.5, gamma=0.5, tau=T)
    assert dist(student, teacher, T, beta=1.5, gamma=0.5).item() == pytest.approx(
        theirs(peer, student, teacher), rel=1e-5
    )
