"""CRD: its loss against a plain float64 reference, its bank, and what it needs of a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import CRD, TermBatch, contrast
from tutelage.distillation.outputs import Outputs
from tutelage.models.features import NetworkInfo

IMAGES, OURS, THEIRS = 20, 5, 7
INDEX = torch.tensor([3, 0, 19, 7])


def built(**settings: float) -> CRD:
    torch.manual_seed(0)
    term = CRD("a", "a", **({"width": 6, "negatives": 9} | settings))  # type: ignore[arg-type]
    term.train_images = IMAGES
    term.build(NetworkInfo({"a": (OURS,)}), NetworkInfo({"a": (THEIRS,)}))
    return term.double()


def batch(seed: int = 0, index: Tensor | None = INDEX) -> TermBatch:
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(4, width, generator=draw, dtype=torch.float64) for width in (OURS, THEIRS))
    labels = torch.zeros(4, dtype=torch.int64)
    return TermBatch(Outputs(None, {"a": ours}), Outputs(None, {"a": theirs}), labels, labels, index=index)


def reference(term: CRD, given: TermBatch, constants: list[float] | None = None) -> tuple[float, list[float]]:
    """The authors' formula with its probabilities, image by image, before the bank changes."""
    banks = {name: getattr(term.bank, name).numpy().copy() for name in ("student", "teacher")}
    others = term.bank.draw(term.negatives).numpy()
    total, found = 0.0, []
    for side, bank in (("student", banks["teacher"]), ("teacher", banks["student"])):
        layer = getattr(term, f"{side}_projector")
        x = (
            getattr(given, side).features["a"].numpy() @ layer.weight.detach().numpy().T
            + layer.bias.detach().numpy()
        )
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        outs = np.array(
            [np.exp(bank[[i, *others]] @ row / term.temperature) for i, row in zip(INDEX, x, strict=True)]
        )
        constant = outs.mean() * IMAGES if constants is None else constants[len(found)]
        found.append(constant)
        p, noise = outs / constant, len(others) / IMAGES
        rows = np.log(p[:, 0] / (p[:, 0] + noise)) + np.log(noise / (p[:, 1:] + noise)).sum(1)
        total -= rows.mean()
    return float(total), found


def test_it_is_the_authors_formula_in_the_first_step_and_later() -> None:
    term = built()
    wanted, constants = reference(term, batch())
    assert term(batch()).item() == pytest.approx(wanted, rel=1e-9)
    assert term.bank.log_constants.exp().tolist() == pytest.approx(constants, rel=1e-9)
    # with the constants of the first batch, and with the bank as that has left it
    wanted, _ = reference(term, batch(1), constants)
    assert term(batch(1)).item() == pytest.approx(wanted, rel=1e-9)


def test_the_bank_moves_towards_the_batch_and_nowhere_else() -> None:
    term = built(momentum=0.25)
    before = term.bank.student.clone()
    projected = term.student_projector(batch().student.features["a"]).detach()
    term(batch())
    after = term.bank.student
    assert torch.allclose(after.norm(dim=1), torch.ones(IMAGES, dtype=torch.float64))
    wanted = 0.25 * before[INDEX] + 0.75 * projected / projected.norm(dim=1, keepdim=True)
    assert torch.allclose(after[INDEX], wanted / wanted.norm(dim=1, keepdim=True))
    untouched = torch.ones(IMAGES, dtype=torch.bool)
    untouched[INDEX] = False
    assert torch.equal(after[untouched], before[untouched])
    assert term.bank.step == 1


def test_an_evaluation_leaves_the_bank_as_it_is_and_so_does_a_step_that_is_not_finite() -> None:
    term = built()
    term(batch())
    before = {name: tensor.clone() for name, tensor in term.state_dict().items()}
    with torch.no_grad():
        term(batch(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in term.state_dict().items())
    bad = batch(2)
    bad.student.features["a"][:] = math.nan
    term(bad)
    assert torch.equal(term.bank.student, before["bank.student"])
    assert not torch.equal(term.bank.teacher, before["bank.teacher"])


def test_a_first_step_that_is_not_finite_sets_no_constant() -> None:
    term = built()
    bad = batch()
    bad.student.features["a"][0, 0] = math.inf
    assert not term(bad).isfinite()
    assert term(batch(1)).isfinite()
    assert term.bank.log_constants.isfinite().all()


def test_gradients_are_the_slopes_also_of_both_projections() -> None:
    similarities = torch.randn(3, 6, dtype=torch.float64).requires_grad_()
    constant = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: contrast(x, IMAGES, constant, 0.5), similarities)
    term = built()
    term(batch()).backward()
    for parameter in term.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_its_infimum_is_zero_and_it_is_finite_where_the_authors_form_overflows() -> None:
    own, others = torch.full((2, 1), 1e4), torch.full((2, 5), -1e4)
    for sign in (1.0, -1.0):
        similarities = (sign * torch.cat([own, others], dim=1)).requires_grad_()
        loss = contrast(similarities, IMAGES, torch.tensor(0.0), 0.07)
        loss.backward()
        assert loss.isfinite()
        assert similarities.grad is not None
        assert similarities.grad.isfinite().all()
        assert (loss == 0) == (sign > 0)


def test_the_draw_depends_on_the_step_alone() -> None:
    """A resumed training draws as the unbroken one, and dropout masks stay as they were."""
    term, other = built(), built()
    torch.manual_seed(1)
    first = term.bank.draw(50)
    left = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(left, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(other.bank.draw(50), first)
    term(batch())
    second = term.bank.draw(50)
    assert not torch.equal(second, first)
    other.load_state_dict(term.state_dict())
    assert torch.equal(other.bank.draw(50), second)


def test_what_is_missing_is_one_line() -> None:
    with pytest.raises(
        TutelageError, match=r"crd: needs the index of each image; give it as in distiller\(images"
    ):
        built()(batch(index=None))
    with pytest.raises(TutelageError, match=r"crd: there are 20 training images, but an index of 20"):
        built()(batch(index=torch.tensor([0, 1, 2, 20])))
    with pytest.raises(TutelageError, match=r"crd: has a memory of all training images; give their number"):
        CRD("a", "a").build(NetworkInfo({"a": (3,)}), NetworkInfo({"a": (3,)}))


def test_it_is_torchdistill_s_for_the_same_draw_which_that_cannot_make() -> None:
    """Its `draw` uses `self.prob`, which does not exist, so that it works with indices of the caller's only."""
    mid_level = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")
    term, given = built(), batch()
    peer = mid_level.CRDLoss(
        "s", "e", "t", 6, IMAGES, term.negatives, IMAGES, term.temperature, term.momentum
    )
    peer = peer.double()
    peer.memory_v1, peer.memory_v2 = term.bank.student.clone(), term.bank.teacher.clone()
    others = term.bank.draw(term.negatives).expand(4, -1)
    embedded = [
        torch.nn.functional.normalize(layer(outputs.features["a"])).detach()
        for layer, outputs in (
            (term.student_projector, given.student),
            (term.teacher_projector, given.teacher),
        )
    ]
    chosen = {"e": {"input": {"pos_idx": INDEX, "contrast_idx": torch.cat([INDEX[:, None], others], dim=1)}}}
    theirs = peer({"s": {"output": embedded[0]}, **chosen}, {"t": {"output": embedded[1]}})
    assert term(given).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(term.bank.student, peer.memory_v1)
    assert torch.allclose(term.bank.teacher, peer.memory_v2)
    with pytest.raises(AttributeError, match="prob"):
        peer.draw(3)
