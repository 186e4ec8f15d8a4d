"""Terms by name, their settings, and those that other packages add."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import Tensor

from tutelage.core import plugins
from tutelage.core.errors import TutelageError
from tutelage.distillation.losses import (
    DKD,
    KL,
    LogitTerm,
    Term,
    TermBatch,
    dkd,
    kl,
    make_term,
    names,
    nkd,
    registry,
)
from tutelage.distillation.losses.listing import LossEntry, list_losses
from tutelage.distillation.outputs import Outputs

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
    module.__dict__.update(cosine=cosine, careless=careless, kl=cosine, number=3, halved=Halved)
    monkeypatch.setitem(sys.modules, "third_party_losses", module)
    points = EntryPoints(
        [
            *(
                EntryPoint(name, f"third_party_losses:{name}", registry.GROUP)
                for name in ("cosine", "careless", "kl", "number", "absent", "halved")
            ),
            EntryPoint("elsewhere", "third_party_losses:cosine", "another.group"),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", points.select)


class Halved(Term):
    """A term with a setting of its own, as a package writes it."""

    name = "halved"

    def __init__(self, weight: float = 1.0, by: float = 2.0) -> None:
        super().__init__(weight)
        self.by = by

    def forward(self, batch: TermBatch) -> Tensor:
        return batch.student.logits.square().mean() / self.by


def value(term: Term, labels: Tensor = LABELS) -> Tensor:
    return term(TermBatch(Outputs(STUDENT), Outputs(TEACHER), labels, labels))


def logit_term(name: str, **settings: float) -> LogitTerm:
    term = make_term(name, settings)
    assert isinstance(term, LogitTerm)
    return term


def test_names_and_what_they_need() -> None:
    built_in = {"kl", "standardised_kl", "dist", "dkd", "nkd", "wttm", "soft_cross_entropy", "logit_mse"}
    assert built_in | {"cross_entropy", "feature_mse"} <= set(names())
    assert {name for name in built_in if logit_term(name).needs.labels} == {"dkd", "nkd"}
    assert all(logit_term(name).needs.teacher_logits for name in built_in)
    assert {name for name in built_in if logit_term(name).temperature is None} == {"logit_mse"}
    assert {name for name in built_in if logit_term(name).needs.top_k} == {"kl"}
    assert make_term("cross_entropy", {}).needs.labels
    assert not make_term("cross_entropy", {}).needs.teacher


def test_each_loss_has_its_authors_temperature() -> None:
    own = {"kl": 2, "standardised_kl": 2, "dist": 1, "dkd": 4, "nkd": 1, "wttm": 2, "soft_cross_entropy": 2}
    assert {name: logit_term(name).temperature for name in own} == own


def test_a_term_is_its_function() -> None:
    assert torch.equal(value(make_term("kl", {"temperature": 2})), kl(STUDENT, TEACHER, 2))
    assert torch.equal(
        value(make_term("dkd", {"temperature": 2, "beta": 3})), dkd(STUDENT, TEACHER, LABELS, 2, beta=3)
    )
    assert torch.equal(value(make_term("nkd", {})), nkd(STUDENT, TEACHER, LABELS))
    assert value(make_term("logit_mse", {})).ndim == 0
    assert torch.equal(value(LogitTerm(cosine, power=2)), cosine(STUDENT, TEACHER, power=2))


def test_a_term_shows_its_settings() -> None:
    assert repr(KL(0.5, temperature=3)) == "KL(name='kl', options={}, temperature=3, weight=0.5)"
    assert repr(DKD()) != repr(DKD(beta=2.0))


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(
        TutelageError, match=r"loss.name: no loss 'standardized_kl', did you mean standardised_kl\?"
    ):
        make_term("standardized_kl", {}, "loss.name")


def test_unknown_settings_name_what_there_is() -> None:
    line = r"dkd has no setting 'bta', did you mean beta\?; its settings are weight, temperature, alpha, beta"
    with pytest.raises(TutelageError, match=line):
        make_term("dkd", {"bta": 3})
    with pytest.raises(TutelageError, match=r"loss.terms: kl has no setting 'beta'"):
        make_term("kl", {"beta": 3})
    with pytest.raises(TutelageError, match=r"loss.terms: feature_mse needs student, teacher"):
        make_term("feature_mse", {"weight": 3})
    with pytest.raises(TutelageError, match=r"logit_mse has no setting 'temperature'"):
        make_term("logit_mse", {"temperature": 3})
    with pytest.raises(TutelageError, match=r"feature_mse: projector 'curved': use one of linear, none"):
        make_term("feature_mse", {"student": "a", "teacher": "b", "projector": "curved"})


def test_a_function_of_the_package_is_a_term_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN, "near", cosine)
    assert torch.equal(value(make_term("near", {"power": 2})), cosine(STUDENT, TEACHER, power=2))
    assert "near" in names()


@pytest.mark.usefixtures("third_party")
def test_a_package_adds_a_loss() -> None:
    assert "cosine" in names()
    assert "elsewhere" not in names()
    term = logit_term("cosine", power=2, weight=3)
    assert (term.needs.labels, term.temperature, term.weight) == (False, 3.0, 3)
    assert torch.equal(value(term), cosine(STUDENT, TEACHER, power=2))
    with pytest.raises(TutelageError, match=r"loss\.options\.powr.*did you mean power"):
        make_term("cosine", {"powr": 2})


@pytest.mark.usefixtures("third_party")
def test_a_package_adds_a_term() -> None:
    term = make_term("halved", {"weight": 2, "by": 4})
    assert isinstance(term, Halved)
    assert torch.equal(value(term), STUDENT.square().mean() / 4)
    with pytest.raises(TutelageError, match=r"loss.terms: halved has no setting 'bi', did you mean by\?"):
        make_term("halved", {"bi": 2})


@pytest.mark.usefixtures("third_party")
def test_a_package_cannot_replace_a_built_in_loss() -> None:
    assert logit_term("kl").function.function is kl
    assert names().count("kl") == 1


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent", r"the entry point absent = third_party_losses:absent \(.*\) cannot be loaded \(Attribute"),
        (
            "number",
            r"the entry point number = third_party_losses:number \(.*\) is not a loss \(3 is not a call",
        ),
        (
            "careless",
            r"careless = third_party_losses:careless .* has options without a default: margin; give",
        ),
    ],
)
def test_a_package_s_faulty_loss_is_named(name: str, line: str) -> None:
    with pytest.raises(TutelageError, match=line):
        make_term(name, {})


# --- the list of all losses


@pytest.fixture
def entries(third_party: None) -> dict[str, LossEntry]:
    return {one.name: one for one in list_losses()}


def test_the_list_says_what_each_loss_needs_and_its_defaults(entries: dict[str, LossEntry]) -> None:
    kl, dkd, hints = entries["kl"], entries["dkd"], entries["feature_mse"]
    assert (kl.meaning, kl.paper, kl.temperature, kl.options) == (
        "Knowledge distillation",
        "Hinton 2015",
        2.0,
        {},
    )
    assert (dkd.temperature, dkd.options) == (4.0, {"alpha": 1.0, "beta": 8.0})
    assert dkd.needs == ("the teacher's logits", "the labels")
    assert entries["cross_entropy"].needs == ("the labels",)
    assert hints.needs == ("a layer of each network",)
    assert hints.paper == 'Romero 2015, "FitNets"'
    assert hints.options["projector"] == "linear"
    assert entries["logit_mse"].temperature is None
    assert entries["crd"].needs == ("a layer of each network", "the index of each image")
    assert entries["review_kd"].needs == ("layers of each network",)
    assert (entries["crd"].options["weight"], "weight" in entries["rkd"].options) == (0.8, False)


def test_the_list_has_the_losses_of_packages_and_why_one_cannot_be_used(
    entries: dict[str, LossEntry],
) -> None:
    assert entries.keys() == set(registry.names())
    assert (entries["cosine"].temperature, entries["cosine"].options) == (3.0, {"power": 1.0})
    assert entries["cosine"].needs == ("the teacher's logits",)
    assert entries["halved"].meaning == "A term with a setting of its own, as a package writes it"
    assert not entries["halved"].built_in
    assert entries["kl"].built_in  # a package's loss of the same name is not the one that is used
    assert "cannot be loaded" in entries["absent"].meaning
