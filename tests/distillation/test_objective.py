"""What a recipe minimises: the shorthand, a list of terms, and each loss's own temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers.stages import network
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import LossRecipe, parse_recipe
from tutelage.distillation.losses import KL, CrossEntropy, FeatureMSE, TermBatch, hard_label_loss, kl
from tutelage.distillation.objective import (
    Objective,
    body_state,
    check_layers,
    check_losses,
    soft_temperature,
    terms_of,
)
from tutelage.distillation.outputs import Outputs
from tutelage.models.features import NetworkInfo

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, -1, 0])


def batch(**features: Any) -> TermBatch:
    return TermBatch(
        Outputs(STUDENT, features.get("student", {})),
        Outputs(TEACHER, features.get("teacher", {})),
        LABELS,
        LABELS,
    )


def recipe(**loss: Any) -> LossRecipe:
    return parse_recipe({"loss": loss}).loss


def test_the_shorthand_is_two_weighted_terms() -> None:
    found = Objective(terms_of(recipe(weight=0.7, temperature=3.0, label_weight=0.2)))(batch())
    assert found["kl"] == pytest.approx(0.7 * kl(STUDENT, TEACHER, 3.0).item())
    assert found["cross_entropy"] == pytest.approx(0.2 * hard_label_loss(STUDENT, LABELS).item())
    assert found["loss"] == pytest.approx(found["kl"].item() + found["cross_entropy"].item())
    assert [type(term) for term in terms_of(recipe(weight=0))] == [CrossEntropy]
    assert [type(term) for term in terms_of(recipe(label_weight=0))] == [KL]


@pytest.mark.parametrize(
    ("name", "own"), [("kl", 2), ("dkd", 4), ("dist", 1), ("nkd", 1), ("wttm", 2), ("logit_mse", 1)]
)
def test_each_loss_has_its_own_temperature_where_none_is_given(name: str, own: float) -> None:
    """A fixed 2 was passed to all of them once."""
    assert soft_temperature(recipe(name=name)) == own
    given = soft_temperature(recipe(name=name, temperature=7))
    assert given == (1 if name == "logit_mse" else 7)  # which has none: a study may vary the name alone


def test_terms_say_what_the_shorthand_says() -> None:
    short = Objective(
        terms_of(recipe(name="dkd", temperature=3, weight=0.5, options={"beta": 2}, label_weight=0.3))
    )
    listed = Objective(
        terms_of(
            recipe(
                terms=[
                    {"dkd": {"temperature": 3, "weight": 0.5, "beta": 2}},
                    {"cross_entropy": {"weight": 0.3}},
                ]
            )
        )
    )
    assert {k: v.item() for k, v in short(batch()).items()} == {
        k: v.item() for k, v in listed(batch()).items()
    }


def test_a_name_that_comes_twice_gets_a_number() -> None:
    found = Objective([KL(temperature=1), KL(temperature=4), CrossEntropy()])(batch())
    assert set(found) == {"loss", "kl", "kl_2", "cross_entropy"}


def test_a_plain_function_is_a_term() -> None:
    def gap(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return (student_logits - teacher_logits).abs().mean()

    found = Objective([gap])(batch())
    assert found["gap"] == pytest.approx((STUDENT - TEACHER).abs().mean().item())


def test_terms_on_layers_are_left_out_where_only_logits_are_known() -> None:
    objective = Objective([FeatureMSE("a", "b", projector="none"), KL()])
    assert set(objective.on_logits(batch())) == {"kl"}
    assert (objective.student_layers, objective.teacher_layers) == (("a",), ("b",))


def test_l2_sp_pulls_what_has_a_start() -> None:
    student = nn.Linear(2, 1)
    start = {"weight": student.weight.detach() + 1}
    found = Objective([CrossEntropy()], l2_sp=0.5, start=start)(batch(), student)
    assert found["l2_sp"].item() == pytest.approx(0.25 * 2)


def test_l2_sp_leaves_the_head_alone() -> None:
    """It pulled a new head to what a fit of a few epochs had made of it."""
    model = network("test_efficientnet", 0)
    body = body_state(model, model.module.state_dict(), torch.device("cpu"))
    names = dict(model.module.named_parameters())
    assert set(names) - set(body) == {"classifier.weight", "classifier.bias"}
    for name, parameter in names.items():  # as in a head warm-up: nothing is left to pull
        parameter.requires_grad_(name not in body)
    assert Objective([CrossEntropy()], l2_sp=1.0, start=body)(batch(), model.module)["l2_sp"] == 0


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        ({"terms": [{"kl": {}}], "weight": 3}, "leave loss.weight out, or set it in a term"),
        ({"terms": [{"kl": {}}], "temperature": 3}, "leave loss.temperature out"),
        ({"weight": 0, "label_weight": 0}, "nothing to learn from"),
    ],
)
def test_two_ways_of_saying_it_are_refused(loss: dict[str, Any], line: str) -> None:
    with pytest.raises(TutelageError, match=line):
        recipe(**loss)


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ([{"kll": {}}], r"loss\.terms\.0: no loss 'kll', did you mean kl\?"),
        ([{"kl": {}}, {"dkd": {"gamma": 1}}], r"loss\.terms\.1: dkd has no setting 'gamma'"),
        ([{"kl": {}, "dkd": {}}], r"loss\.terms\.0: write one term as"),
        ([{"feature_mse": {"student": "a"}}], r"loss\.terms\.0: feature_mse needs teacher"),
        ([{"kl": {"weight": "much"}}], r"loss\.terms\.0: kl: weight must be a number, not 'much'"),
        ([{"dkd": {"beta": [1]}}], r"loss\.terms\.0: dkd: beta must be a number, not \[1\]"),
    ],
)
def test_a_faulty_term_is_named_by_its_place(terms: list[Any], line: str) -> None:
    with pytest.raises(TutelageError, match=line):
        terms_of(recipe(terms=terms))


def test_numbers_are_numbers_though_yaml_reads_them_as_text() -> None:
    (term,) = terms_of(recipe(terms=[{"kl": {"weight": "1e-4", "temperature": 3}}]))
    assert (term.weight, term.temperature) == (1e-4, 3)
    (layered,) = terms_of(recipe(terms=[{"feature_mse": {"student": "0", "teacher": "0", "weight": "1e1"}}]))
    assert (layered.weight, layered.needs.student_layers) == (10.0, ("0",))  # a layer's name may be a number


def test_layers_are_refused_with_a_cache_before_any_work() -> None:
    terms = [{"feature_mse": {"student": -1, "teacher": -1}}]
    check_losses(parse_recipe({"loss": {"terms": terms}}))
    with pytest.raises(
        TutelageError, match=r"targets.mode=cached: a cache holds logits and pooled features.*layer -1"
    ):
        check_losses(parse_recipe({"loss": {"terms": terms}, "targets": {"mode": "cached"}}))


def test_pooled_features_are_taken_from_a_cache() -> None:
    terms = [{"kl": {}}, {"vkd": {}}]
    check_losses(parse_recipe({"loss": {"terms": terms}, "targets": {"mode": "cached"}}))


def test_only_logits_can_be_cached_and_only_kl_from_the_largest() -> None:
    tree = {"loss": {"terms": [{"dist": {}}]}, "targets": {"mode": "cached", "top_k": 3}}
    with pytest.raises(TutelageError, match="only the loss kl can work with the largest classes, not dist"):
        parse_recipe(tree)


def test_a_projector_is_made_for_the_channels() -> None:
    term = FeatureMSE("a", "b")
    term.build(NetworkInfo({"a": (3, 8, 8)}), NetworkInfo({"b": (5, 4, 4)}))
    assert tuple(term.projector.weight.shape) == (5, 3)
    with pytest.raises(TutelageError, match="3 channels, the teacher's 'b' has 5; use projector: linear"):
        FeatureMSE("a", "b", projector="none").build(
            NetworkInfo({"a": (3, 8, 8)}), NetworkInfo({"b": (5, 4, 4)})
        )


@pytest.mark.parametrize(
    ("term", "line"),
    [
        ({"cka": {"student": "layer9"}}, r"layer 'layer9': EfficientNet has no such layer"),
        ({"cka": {"teacher": 9}}, r"layer 9: ResNet has 0 to 4"),
        ({"feature_mse": {"student": 0, "teacher": -1, "projector": "none"}}, r"use projector: linear"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused_before_any_training(term: dict[str, Any], line: str) -> None:
    """It was found when the distillation began, after the teacher's fit and the control."""
    student, teacher = network("test_efficientnet", 0), network("test_resnet", 1)
    before = torch.random.get_rng_state()
    with pytest.raises(TutelageError, match=line):
        check_layers(recipe(terms=[term]), student, teacher, 20)
    check_layers(recipe(terms=[{"crd": {"negatives": 3}}, {"review_kd": None}]), student, teacher, 20)
    assert torch.equal(torch.random.get_rng_state(), before)
    check_layers(recipe(), student, teacher, 20)
