"""Losses by name, their options, and those that other packages add."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import dkd, get, kl, names, nkd, registry

STUDENT, TEACHER = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


def cosine(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0, power: float = 1.0
) -> Tensor:
    similarity = torch.cosine_similarity(student_logits / temperature, teacher_logits / temperature)
    return (1 - similarity).pow(power).mean()


def careless(student_logits: Tensor, teacher_logits: Tensor, margin: float) -> Tensor:
    return (student_logits - teacher_logits).clamp_min(margin).mean()


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("third_party_losses")
    module.__dict__.update(cosine=cosine, careless=careless, kl=cosine, number=3)
    monkeypatch.setitem(sys.modules, "third_party_losses", module)
    points = EntryPoints(
        [
            *(
                EntryPoint(name, f"third_party_losses:{name}", registry.GROUP)
                for name in ("cosine", "careless", "kl", "number", "absent")
            ),
            EntryPoint("elsewhere", "third_party_losses:cosine", "another.group"),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", points.select)


def test_names_and_what_they_need() -> None:
    built_in = {"kl", "standardised_kl", "dist", "dkd", "nkd", "wttm", "soft_cross_entropy", "logit_mse"}
    assert built_in <= set(names())
    assert {name for name in built_in if get(name).needs_labels} == {"dkd", "nkd"}
    assert {name for name in built_in if not get(name).uses_temperature} == {"logit_mse"}
    assert get("dkd").options == {"alpha": 1.0, "beta": 8.0}
    assert get("kl").options == {}


def test_one_calling_form_for_all() -> None:
    assert torch.equal(get("kl")(STUDENT, TEACHER, LABELS, temperature=2), kl(STUDENT, TEACHER, 2))
    assert torch.equal(
        get("dkd")(STUDENT, TEACHER, LABELS, temperature=2, beta=3), dkd(STUDENT, TEACHER, LABELS, 2, beta=3)
    )
    assert torch.equal(get("nkd")(STUDENT, TEACHER, LABELS), nkd(STUDENT, TEACHER, LABELS))  # own temperature
    assert get("logit_mse")(STUDENT, TEACHER, None, temperature=7).ndim == 0


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(
        TutelageError, match=r"loss.name: no loss 'standardized_kl', did you mean standardised_kl\?"
    ):
        get("standardized_kl")


def test_unknown_option_names_its_key_and_what_there_is() -> None:
    line = r"loss\.options\.bta: dkd has no such option, did you mean beta\?; there is alpha, beta"
    with pytest.raises(TutelageError, match=line):
        get("dkd").check({"bta": 3})
    with pytest.raises(TutelageError, match=line):
        get("dkd")(STUDENT, TEACHER, LABELS, bta=3)
    with pytest.raises(TutelageError, match=r"loss\.options\.beta: kl has no such option; it has none"):
        get("kl").check({"beta": 3})


def test_missing_labels_are_named() -> None:
    with pytest.raises(TutelageError, match=r"loss.name: nkd needs labels"):
        get("nkd")(STUDENT, TEACHER)


@pytest.mark.usefixtures("third_party")
def test_a_package_adds_a_loss() -> None:
    assert "cosine" in names()
    assert "elsewhere" not in names()
    loss = get("cosine")
    assert (loss.needs_labels, loss.uses_temperature, loss.options) == (False, True, {"power": 1.0})
    assert torch.equal(loss(STUDENT, TEACHER, LABELS, power=2), cosine(STUDENT, TEACHER, power=2))
    with pytest.raises(TutelageError, match=r"loss\.options\.powr.*did you mean power"):
        loss.check({"powr": 2})


@pytest.mark.usefixtures("third_party")
def test_a_package_cannot_replace_a_built_in_loss() -> None:
    assert get("kl").function is kl
    assert names().count("kl") == 1


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent", r"absent \(entry point third_party_losses:absent\) cannot be loaded"),
        ("number", r"number \(entry point third_party_losses:number\) cannot be loaded: 3 is not a callable"),
        ("careless", r"careless .* has options without a default: margin; give them one"),
    ],
)
def test_a_package_s_faulty_loss_is_named(name: str, line: str) -> None:
    with pytest.raises(TutelageError, match=line):
        get(name)
