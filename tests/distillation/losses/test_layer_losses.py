"""Each loss on layers against a plain float64 reference, at equality and extremes, and against torchdistill."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import (
    ICKD,
    SRD,
    LayerTerm,
    ReviewKD,
    TermBatch,
    TokenMSE,
    VkD,
    attention_transfer,
    channel_correlation,
    cka,
    hierarchical_context,
    make_term,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
    srd,
)
from tutelage.distillation.losses.layered import as_map, as_vector, pooled
from tutelage.distillation.outputs import Outputs
from tutelage.models.features import NetworkInfo

Array = np.ndarray
Loss = Callable[[Tensor, Tensor], Tensor]


def rows(count: int = 6, ours: int = 5, theirs: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=draw, dtype=torch.float64) for width in (ours, theirs))


def maps(
    count: int = 3, ours: tuple[int, ...] = (4, 6, 6), theirs: tuple[int, ...] = (4, 3, 3), seed: int = 0
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=draw, dtype=torch.float64) for shape in (ours, theirs))


# --- the formulas in numpy float64, straight from the papers, by loops over images ---------------------------


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def ref_rkd_distance(s: Array, t: Array) -> float:
    found = []
    for x in (s, t):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        found.append(d / d[d > 0].mean())
    return float(np.mean([huber(a, b) for a, b in zip(found[0].flat, found[1].flat, strict=True)]))


def ref_rkd_angle(s: Array, t: Array) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        length = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / length) if length else 0.0

    n = range(len(s))
    return float(np.mean([huber(cosine(s, i, j, k), cosine(t, i, j, k)) for i in n for j in n for k in n]))


def ref_similarity_preserving(s: Array, t: Array) -> float:
    found = []
    for x in (s.reshape(len(s), -1), t.reshape(len(t), -1)):
        g = np.array([[a @ b for b in x] for a in x])
        found.append(np.array([row / np.linalg.norm(row) for row in g]))
    return float(((found[0] - found[1]) ** 2).sum() / len(s) ** 2)


def ref_cka(s: Array, t: Array) -> float:
    """By the features' covariances, where the loss has the kernels of the images."""
    s, t = s - s.mean(0), t - t.mean(0)
    return float(1 - np.linalg.norm(s.T @ t) ** 2 / (np.linalg.norm(s.T @ s) * np.linalg.norm(t.T @ t)))


def ref_channel_correlation(s: Array, t: Array) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        grams = []
        for x in (a, b):
            g = np.array([[(p * q).sum() for q in x] for p in x])
            grams.append(np.array([row / np.linalg.norm(row) for row in g]))
        total += ((grams[0] - grams[1]) ** 2).sum() / len(a)
    return total / len(s)


def halved(x: Array) -> Array:
    """Maps (..., 2n, 2n) to (..., n, n)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // 2, 2, x.shape[-1] // 2, 2).mean((-3, -1))


def ref_attention_transfer(s: Array, t: Array) -> float:
    values = []
    for a, b in zip(s, t, strict=True):
        ours, theirs = halved((a**2).mean(0)).ravel(), (b**2).mean(0).ravel()
        values.append((ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)) ** 2)
    return float(np.mean(values))


def ref_srd(s: Array, t: Array) -> float:
    z = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (s, t)]
    return float(np.log(np.mean(np.abs(z[0] - z[1]) ** 4) + 1e-8))


def ref_hierarchical_context(s: Array, t: Array) -> float:
    """Of 8x8 maps: as they are, 4x4, 2x2 and 1x1."""
    loss = 0.0
    for weight in (1, 1 / 2, 1 / 4, 1 / 8):
        loss += weight * float(((s - t) ** 2).mean())
        if s.shape[-1] > 1:
            s, t = halved(s), halved(t)
    return loss / (1 + 1 / 2 + 1 / 4 + 1 / 8)


ON_ROWS: dict[str, tuple[Loss, Callable[[Array, Array], float]]] = {
    "rkd_distance": (rkd_distance, ref_rkd_distance),
    "rkd_angle": (rkd_angle, ref_rkd_angle),
    "similarity_preserving": (similarity_preserving, ref_similarity_preserving),
    "cka": (cka, ref_cka),
}
LEAST = {"srd": math.log(1e-8)}  # 0 for all others


def cases(seed: int = 0) -> dict[str, tuple[Loss, Callable[[Array, Array], float], tuple[Tensor, Tensor]]]:
    """Each function, its reference, and outputs of both networks."""
    found = {name: (loss, ref, rows(seed=seed)) for name, (loss, ref) in ON_ROWS.items()}
    found["srd"] = (srd, ref_srd, rows(theirs=5, seed=seed))
    found["channel_correlation"] = (channel_correlation, ref_channel_correlation, maps(seed=seed))
    found["attention_transfer"] = (attention_transfer, ref_attention_transfer, maps(seed=seed))
    large = maps(2, (3, 8, 8), (3, 8, 8), seed=seed)
    found["hierarchical_context"] = (hierarchical_context, ref_hierarchical_context, large)
    return found


ALL = sorted(cases())


@pytest.mark.parametrize("name", ALL)
def test_it_is_its_reference(name: str) -> None:
    for seed in range(3):
        loss, reference, (student, teacher) = cases(seed)[name]
        wanted = reference(student.numpy(), teacher.numpy())
        assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-9)
        assert loss(student.float(), teacher.float()).item() == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_its_gradient_is_the_value_s_slope_and_the_teacher_gets_none(name: str) -> None:
    loss, _, (student, teacher) = cases()[name]
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", ALL)
def test_it_is_least_and_flat_at_equality(name: str) -> None:
    loss, _, (student, teacher) = cases()[name]
    equal = teacher.clone().requires_grad_()
    value = loss(equal, teacher)
    value.backward()
    assert value.item() == pytest.approx(LEAST.get(name, 0), abs=1e-12)
    assert equal.grad is not None
    assert equal.grad.abs().max() < 1e-6
    assert loss(student, teacher) > value + 1e-3


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, -1e4, 1e-30])
@pytest.mark.parametrize("name", ALL)
def test_it_is_finite_at_extremes(name: str, value: float) -> None:
    """Constant features (all images alike), huge ones, one image a batch, and a student that has collapsed."""
    loss, _, (student, teacher) = cases()[name]
    constant = torch.full_like(student, value).float()
    scaled = (student * (value or 1)).float()
    for ours, theirs in (
        (constant, teacher.float()),
        (scaled, teacher.float()),
        (student.float(), torch.full_like(teacher, value).float()),
        (constant, torch.full_like(teacher, value).float()),
        (scaled[:1], teacher[:1].float()),
        (torch.cat([scaled[:1], scaled[:-1]]), teacher.float()),  # two images of the student's coincide
    ):
        ours = ours.clone().requires_grad_()
        found = loss(ours, theirs)
        found.backward()
        assert found.isfinite()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_it_is_float32_inside_autocast(name: str, half: torch.dtype) -> None:
    loss, _, (student, teacher) = cases()[name]
    student, teacher = student.to(half), teacher.to(half)
    outside = loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=half):
        inside = loss(student, teacher)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


# --- properties ----------------------------------------------------------------------------------------------

sizes = {"count": st.integers(2, 6), "ours": st.integers(1, 5), "theirs": st.integers(2, 6)}
drawn = st.builds(rows, **sizes, seed=st.integers(0, 999))
few = settings(max_examples=10, deadline=None)


def rotation(size: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]


@pytest.mark.parametrize("name", sorted(ON_ROWS))
@few
@given(data=drawn, scale=st.floats(1e-3, 1e3))
def test_a_relation_does_not_see_rotation_scale_or_order(
    name: str, data: tuple[Tensor, Tensor], scale: float
) -> None:
    student, teacher = data
    loss = ON_ROWS[name][0]
    before = loss(student, teacher)
    moved = scale * student @ rotation(student.shape[1], 1)
    if name != "similarity_preserving":
        moved = moved + 3.0
    assert torch.allclose(loss(moved, teacher), before, rtol=1e-6, atol=1e-9)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(loss(student[order], teacher[order]), before, rtol=1e-6, atol=1e-9)
    assert -1e-12 <= before <= 2  # 1 - cka may round below 0


@few
@given(data=drawn, exponent=st.sampled_from([1.0, 2.0, 4.0]))
def test_srd_does_not_see_offset_or_scale_of_a_feature(data: tuple[Tensor, Tensor], exponent: float) -> None:
    teacher = data[1]
    student = teacher.flip(0)
    scales = torch.linspace(1, 9, teacher.shape[1], dtype=torch.float64)
    found = srd(1e3 * student * scales - 5, teacher, exponent), srd(1e3 * student, teacher, exponent)
    assert torch.allclose(*found, rtol=1e-3, atol=1e-3)


# --- terms: shapes, projectors, layers -----------------------------------------------------------------------

TERMS = [
    *("rkd", "similarity_preserving", "cka", "ickd", "attention_transfer"),
    *("vkd", "srd", "token_mse", "review_kd", "crd"),
]
CNN, VIT = (4, 6, 6), (10, 8)  # a map, and tokens: a class token and 3x3 patches


def built(name: str, student: tuple[int, ...], teacher: tuple[int, ...], images: int = 20) -> LayerTerm:
    torch.manual_seed(0)
    two = (
        {"student": ["a", "b"], "teacher": ["a", "b"]} if name in ("attention_transfer", "review_kd") else {}
    )
    one = {} if two else {"student": "a", "teacher": "a"}
    few = {"negatives": 5, "width": 6} if name == "crd" else {}
    term = make_term(name, two | one | few)
    assert isinstance(term, LayerTerm)
    term.train_images = images
    infos = [
        NetworkInfo({"a": shape, "b": shape}, prefix_tokens=1 if len(shape) == 2 else 0)
        for shape in (student, teacher)
    ]
    term.build(*infos)
    return term


def step(term: LayerTerm, student: Tensor, teacher: Tensor) -> Tensor:
    labels = torch.zeros(len(student), dtype=torch.int64)
    outputs = [Outputs(None, {"a": x, "b": x}) for x in (student, teacher)]
    return term(TermBatch(*outputs, labels, labels, index=torch.arange(len(student))))


@pytest.mark.parametrize("teacher", [CNN, VIT, (12, 3, 3), (9,)], ids=str)
@pytest.mark.parametrize("student", [CNN, VIT], ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_any_two_networks_meet_and_all_that_learns_gets_a_gradient(
    name: str, student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    """A CNN and a transformer, either way round, at different resolutions, under autocast; the maps may be vectors."""
    term = built(name, student, teacher)
    draw = torch.Generator().manual_seed(1)
    ours = torch.randn(4, *student, generator=draw).bfloat16().requires_grad_()
    theirs = torch.randn(4, *teacher, generator=draw).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(term, ours, theirs)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    loss.backward()
    assert theirs.grad is None
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    if name != "attention_transfer" or teacher != (9,):  # all the attention is in one place there
        assert ours.grad.abs().max() > 0
    for parameter in term.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_one_image_and_huge_features_are_finite(name: str) -> None:
    for scale in (1.0, 1e4, 0.0):
        term = built(name, CNN, VIT)
        ours = (scale * torch.randn(1, *CNN)).requires_grad_()
        loss = step(term, ours, scale * torch.randn(1, *VIT))
        loss.backward()
        assert loss.isfinite()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in TERMS if name != "crd"])
def test_a_term_s_gradient_is_its_slope(name: str) -> None:
    term = built(name, (2, 2, 2), (3, 2, 2)).double()
    student, teacher = maps(3, (2, 2, 2), (3, 2, 2))
    assert torch.autograd.gradcheck(lambda x: step(term, x, teacher), student.requires_grad_())


def weights(layer: nn.Linear | nn.Conv2d) -> tuple[Array, Array]:
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    return weight.reshape(len(weight), -1), bias


def test_vkd_is_its_reference_and_its_projection_is_orthogonal() -> None:
    for ours, theirs in ((5, 7), (7, 5), (4, 4)):
        torch.manual_seed(0)
        term = VkD("a", "a")
        term.build(NetworkInfo({"a": (ours,)}), NetworkInfo({"a": (theirs,)}))
        term.double()
        student, teacher = rows(6, ours, theirs)
        weight, _ = weights(term.projector)
        small = weight @ weight.T if theirs <= ours else weight.T @ weight
        assert np.allclose(small, np.eye(len(small)), atol=1e-6)
        values = []
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
            wanted = (t - t.mean()) / np.sqrt(t.var() + 1e-5)
            values.append([huber(a, b) for a, b in zip(weight @ s, wanted, strict=True)])
        assert step(term, student, teacher).item() == pytest.approx(np.mean(values), rel=1e-9)
        goal = torch.from_numpy(wanted)[None]
        if theirs <= ours:  # the projected student can be anything
            reached = goal @ term.projector.weight
            assert step(term, reached, teacher[-1:]).item() == pytest.approx(0, abs=1e-10)


def test_the_projection_of_vkd_stays_orthogonal_while_it_learns() -> None:
    term = built("vkd", (5,), (7,))
    optimizer = torch.optim.SGD(term.parameters(), lr=1.0)
    before = term.projector.weight.detach().clone()
    for seed in range(5):
        optimizer.zero_grad()
        step(term, *(x.float() for x in rows(8, 5, 7, seed))).backward()
        optimizer.step()
    weight = term.projector.weight.detach()
    assert not torch.allclose(weight, before, atol=1e-3)
    assert torch.allclose(weight.mT @ weight, torch.eye(5), atol=1e-5)


def test_srd_and_ickd_project_the_student_first() -> None:
    student, teacher = rows(6, 5, 7)
    term = SRD("a", "a", exponent=2.0)
    term.build(NetworkInfo({"a": (5,)}), NetworkInfo({"a": (7,)}))
    weight, _ = weights(term.double().projector)
    projected = torch.from_numpy(student.numpy() @ weight.T)
    assert step(term, student, teacher).item() == pytest.approx(srd(projected, teacher, 2.0).item())
    ours, theirs = maps(3, (4, 6, 6), (5, 3, 3))
    icc = ICKD("a", "a")
    icc.build(NetworkInfo({"a": (4, 6, 6)}), NetworkInfo({"a": (5, 3, 3)}))
    weight, bias = weights(icc.double().projector)
    projected_maps = np.einsum("oc,bchw->bohw", weight, ours.numpy()) + bias[:, None, None]
    wanted = ref_channel_correlation(projected_maps, theirs.numpy())
    assert step(icc, ours, theirs).item() == pytest.approx(wanted, rel=1e-9)


def test_token_mse_is_its_reference() -> None:
    """From a transformer of 3x3 patches to one of 3x3, and from a map of 6x6 with no class token."""
    for shape, prefix in (((10, 4), 1), ((4, 6, 6), 0)):
        torch.manual_seed(0)
        term = TokenMSE("a", "a", class_token=2.0, patches=3.0)
        term.build(NetworkInfo({"a": shape}, prefix), NetworkInfo({"a": (10, 6)}, 1))
        student, teacher = maps(2, shape, (10, 6))
        loss = step(term.double(), student, teacher).item()
        class_weight, class_bias = weights(term.class_projector)
        patch_weight, patch_bias = weights(term.patch_projector)
        whole, patches = [], []
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
            wanted = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5)
            ours = s[0] if prefix else s.mean((1, 2))
            grid = s[1:] if prefix else halved(s).reshape(4, 9).T
            whole.append((class_weight @ ours + class_bias - wanted[0]) ** 2)
            patches.append((grid @ patch_weight.T + patch_bias - wanted[1:]) ** 2)
        assert loss == pytest.approx(2 * np.mean(whole) + 3 * np.mean(patches), rel=1e-9)


def normalised(x: Array) -> Array:
    return (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def one_by_one(x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    return np.einsum("oc,bchw->bohw", weight, x) + np.reshape(bias, (1, -1, 1, 1))


def three_by_three(x: Array, weight: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    return sum(
        np.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(3)
        for j in range(3)
    )


def test_review_kd_is_its_reference() -> None:
    """Two layers: the last one alone, then the first one mixed with it, and the teacher's first at half the size."""
    torch.manual_seed(0)
    shapes = {"student": [(3, 8, 8), (4, 4, 4)], "teacher": [(5, 4, 4), (6, 4, 4)]}
    term = ReviewKD(["a", "b"], ["a", "b"])
    term.build(*(NetworkInfo(dict(zip("ab", each, strict=True))) for each in shapes.values()))
    term.double()
    draw = torch.Generator().manual_seed(3)
    ours, theirs = (
        {
            layer: torch.randn(2, *shape, generator=draw, dtype=torch.float64)
            for layer, shape in zip("ab", each, strict=True)
        }
        for each in shapes.values()
    )
    labels = torch.zeros(2, dtype=torch.int64)
    loss = term(TermBatch(Outputs(None, ours), Outputs(None, theirs), labels, labels)).item()

    def parts(fusion: Any) -> tuple[Array, Array]:
        return weights(fusion.narrow[0])[0], fusion.project[0].weight.detach().numpy()

    def context(s: Array, t: Array) -> float:
        """Of 4x4 maps: as they are, 2x2 and 1x1."""
        total = 0.0
        for weight in (1, 1 / 2, 1 / 4):
            total += weight * float(((s - t) ** 2).mean())
            if s.shape[-1] > 1:
                s, t = halved(s), halved(t)
        return total / (1 + 1 / 2 + 1 / 4)

    first, last = term.fusions
    narrow, project = parts(last)
    behind = normalised(one_by_one(ours["b"].numpy(), narrow))
    wanted = context(normalised(three_by_three(behind, project)), theirs["b"].numpy())
    narrow, project = parts(first)
    mixture = normalised(one_by_one(ours["a"].numpy(), narrow))
    larger = behind.repeat(2, axis=2).repeat(2, axis=3)
    share = 1 / (1 + np.exp(-one_by_one(np.concatenate([mixture, larger], 1), *weights(first.attention))))
    mixture = mixture * share[:, :1] + larger * share[:, 1:]
    fused = normalised(three_by_three(mixture, project))
    wanted += context(halved(fused), theirs["a"].numpy())
    assert loss == pytest.approx(wanted, rel=1e-9)


def test_layers_are_paired_and_their_numbers_have_to_agree() -> None:
    term = make_term("attention_transfer", {"student": [-2, -1], "teacher": ["layer3", "layer4"]})
    assert (term.needs.student_layers, term.needs.teacher_layers) == ((-2, -1), ("layer3", "layer4"))
    assert make_term("cka", {"student": "stages.3"}).needs.student_layers == ("stages.3",)
    with pytest.raises(
        TutelageError, match=r"review_kd: 2 layers of the student and 1 of the teacher; name as many"
    ):
        make_term("review_kd", {"student": [-2, -1], "teacher": -1})


def test_tokens_become_maps_and_vectors() -> None:
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    assert torch.equal(as_vector(tokens, 1), tokens[:, 0])
    assert torch.equal(as_vector(tokens, 0), tokens.mean(1))
    assert torch.equal(as_map(tokens, 1)[:, :, 1, 0], tokens[:, 3])
    assert torch.equal(as_map(tokens, 0), tokens.mean(1)[:, :, None, None])  # five tokens are no square
    assert as_map(torch.zeros(2, 3), 0).shape == (2, 3, 1, 1)


# --- torchdistill 1.1.5 --------------------------------------------------------------------------------------
#
# It has no CKA, VkD or token terms, and no ABF apart from its own models. Where it has a loss and is not right:
#   SPKDLoss gives `normalize(G, 1)`, which is the norm p=1 and not the dimension 1: the rows of its similarity
#     matrices have an L1 norm of 1, while paper and authors' code have the L2 norm.
#   ChSimLoss (ICKD) divides by the batch size twice.
#   SRDLoss has a gradient of NaN where both features are equal, and no standardisation of its own.
#   RKDLoss returns NaN for a batch of one image.
#   CRDLoss: see test_crd.py.


@pytest.fixture(scope="module")
def mid_level() -> ModuleType:
    return pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")


def test_rkd_agrees_with_torchdistill(mid_level: ModuleType) -> None:
    student, teacher = rows(8)
    for distance, angle in ((25.0, 0.0), (0.0, 50.0), (25.0, 50.0)):
        peer = mid_level.RKDLoss("x", "x", distance, angle, "mean")
        theirs = peer({"x": {"output": student}}, {"x": {"output": teacher}}).item()
        ours = distance * rkd_distance(student, teacher) + angle * rkd_angle(student, teacher)
        assert ours.item() == pytest.approx(theirs, rel=1e-6)
    assert not peer({"x": {"output": student[:1]}}, {"x": {"output": teacher[:1]}}).isfinite()


def pairs(student: Tensor, teacher: Tensor) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    end = {"io": "output", "path": "x"}
    setting = {"pair": {"teacher": end, "student": end, "weight": 1}}
    return setting, {"x": {"output": student}}, {"x": {"output": teacher}}


def test_attention_transfer_agrees_with_torchdistill(mid_level: ModuleType) -> None:
    student, teacher = maps(3, (4, 6, 6), (5, 6, 6))
    setting, ours, theirs = pairs(student, teacher)
    peer = mid_level.ATLoss(setting, mode="code")(ours, theirs)
    assert attention_transfer(student, teacher).item() == pytest.approx(peer.item(), rel=1e-6)


def test_hierarchical_context_agrees_with_torchdistill(mid_level: ModuleType) -> None:
    for size in (1, 3, 4, 8):
        student, teacher = maps(2, (3, size, size), (3, size, size))
        peer = mid_level.HierarchicalContextLoss("x", "output", "x", "output")
        found = peer({"x": {"output": (student, None)}}, {"x": {"output": teacher}})
        assert hierarchical_context(student, teacher).item() == pytest.approx(found.item(), rel=1e-9)


def test_icc_is_torchdistill_s_times_the_batch_which_it_divides_by_twice(mid_level: ModuleType) -> None:
    student, teacher = maps(3, (4, 6, 6), (4, 6, 6))
    setting, ours, theirs = pairs(student, teacher)
    peer = mid_level.ChSimLoss(setting)(ours, theirs)
    assert channel_correlation(student, teacher).item() == pytest.approx(3 * peer.item(), rel=1e-6)


def test_torchdistill_s_similarities_have_another_norm(mid_level: ModuleType) -> None:
    student, teacher = rows(6)
    peer = mid_level.SPKDLoss("x", "x", "batchmean")({"x": {"output": student}}, {"x": {"output": teacher}})
    found = [x @ x.T for x in (student, teacher)]
    first, second = (g / g.abs().sum(1, keepdim=True) for g in found)
    assert peer.item() == pytest.approx(((first - second) ** 2).sum().item() / 36, rel=1e-6)
    assert similarity_preserving(student, teacher).item() != pytest.approx(peer.item(), rel=0.1)


def test_srd_is_torchdistill_s_log_distance_up_to_the_number_of_terms(mid_level: ModuleType) -> None:
    student, teacher = rows(6, 5, 5)
    logits = torch.zeros(6, 3, dtype=torch.float64)
    whose = ("student", "teacher")
    ends = {f"{one}_{part}_module_path": part[0] for one in whose for part in ("feature", "linear")}
    ios = {key.replace("_path", "_io"): "output" for key in ends}
    peer = mid_level.SRDLoss(**ends, **ios, exponent=4.0)

    def theirs(one: Tensor, other: Tensor) -> Tensor:
        standard = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (one, other)]
        return peer(*({"f": {"output": x}, "l": {"output": logits}} for x in standard))

    assert srd(student, teacher).item() == pytest.approx(
        theirs(student, teacher).item() / 2 - math.log(30), rel=1e-6
    )
    equal = teacher.clone().requires_grad_()
    theirs(equal, teacher).backward()
    assert equal.grad is not None
    assert not equal.grad.isfinite().all()


@settings(deadline=None)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), grid=st.tuples(st.integers(1, 9), st.integers(1, 9))
)
def test_maps_are_pooled_as_pytorch_pools_adaptively(height: int, width: int, grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    found, wanted = pooled(maps, grid), nn.functional.adaptive_avg_pool2d(maps, grid)
    assert torch.allclose(found, wanted, atol=1e-12)
    towards = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    slopes = [torch.autograd.grad(one, maps, towards)[0] for one in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-12)
