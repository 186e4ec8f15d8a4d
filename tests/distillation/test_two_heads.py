"""Two heads on one body: each learns from its own source, and one head is kept that is a mixture of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.stages import STEPS, StopAt, same, small_context, small_stage, train
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import LossRecipe, SelectionRecipe, parse_recipe
from tutelage.data.input_spec import InputSpec
from tutelage.distillation.checkpoint import State, state_of
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import kl
from tutelage.distillation.objective import Objective, check_losses, terms_of
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.selection import Choice, choose
from tutelage.distillation.stage import Stage
from tutelage.distillation.stop import Interrupted
from tutelage.distillation.two_heads import SHARES, TwoHeads, by_head, mixed
from tutelage.evaluation.quality import quality
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.evaluate import predict
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import Checked, preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.train import train_control, train_student

SPEC = InputSpec(16, 16)


class ConvHead(nn.Module):
    """A head that is a 1x1 convolution, as in MobileNetV3 of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.body(images)).relu().mean((2, 3), keepdim=True)
        return self.fc(features).flatten(1)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


def student(kind: str) -> Model:
    torch.manual_seed(0)
    if kind == "timm":
        return load_model("test_efficientnet@none", num_classes=4, dropout=0.0).at(32)
    return Model.of(ConvHead() if kind == "convolution" else sequential(), input_spec=SPEC)


def perturbed(state: State) -> State:
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + torch.randn(value.shape, generator=generator)
        if name.endswith(("weight", "bias"))
        else value
        for name, value in state.items()
    }


def images_for(model: Model) -> Tensor:
    size = model.input_spec.height
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["timm", "convolution", "sequential"])
@torch.no_grad()
def test_the_folded_head_has_the_mixed_logits_of_both(kind: str) -> None:
    """The reference is two networks with one head each, run one after the other."""
    model = student(kind)
    two, images = TwoHeads(model), images_for(model)
    start = model.module(images)
    for logits in by_head(two.model.module(images)):
        torch.testing.assert_close(logits, start)
    state = perturbed(state_of(two.model.module))
    alone = []
    for half in (0, 1):
        own = {name: value.chunk(2)[half] if name in two.names else value for name, value in state.items()}
        alone.append(model.copied(own).module(images))
    assert (alone[0] - alone[1]).abs().max() > 0.5
    for share in SHARES:
        wanted = (1 - share) * alone[0] + share * alone[1]
        folded = model.copied(two.folded(state, share)).module
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
        both = two.model.copied(state).module(images)
        torch.testing.assert_close(mixed(both, share), wanted, rtol=1e-4, atol=1e-4)
    assert same(state_of(model.module), two.folded(two.doubled(state_of(model.module)), 0.25))


def test_each_head_gets_the_gradient_of_its_own_terms_and_the_body_that_of_all() -> None:
    model = student("sequential")
    two, images = TwoHeads(model), images_for(model)
    labels, answers = (
        torch.tensor([0, 1, 2, 3, -1]),
        torch.randn(5, 4, generator=torch.Generator().manual_seed(3)),
    )
    wide = two.model.copied(perturbed(state_of(two.model.module)))
    loss = LossRecipe(temperature=3.0, weight=0.7, label_weight=0.4)
    distiller = Distiller(wide, _Given(), Objective(terms_of(loss), two_heads=True))
    found = distiller(images, labels, targets=Outputs(answers))
    found["loss"].backward()

    *body, head = wide.module.children()
    features = nn.Sequential(*body)(images).detach().requires_grad_()
    weight, bias = head.weight.detach(), head.bias.detach()
    ours = [
        (w.clone().requires_grad_(), b.clone().requires_grad_())
        for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True)
    ]
    hard, soft = (features @ w.T + b for w, b in ours)
    from_labels = 0.4 * F.cross_entropy(hard[:4], labels[:4])
    from_teacher = 0.7 * kl(soft, answers, 3.0)
    (from_labels + from_teacher).backward()
    assert found["cross_entropy"].item() == pytest.approx(from_labels.item(), rel=1e-5)
    assert found["kl"].item() == pytest.approx(from_teacher.item(), rel=1e-5)
    torch.testing.assert_close(found["logits"], (hard + soft) / 2)
    torch.testing.assert_close(head.weight.grad, torch.cat([ours[0][0].grad, ours[1][0].grad]))
    torch.testing.assert_close(head.bias.grad, torch.cat([ours[0][1].grad, ours[1][1].grad]))
    conv = wide.module[0].weight.grad
    (wanted,) = torch.autograd.grad(nn.Sequential(*body)(images), wide.module[0].weight, features.grad)
    torch.testing.assert_close(conv, wanted)


class _Given:
    """A teacher whose outputs are given to the distiller."""

    input_specs = ()

    def info(self, layers: object) -> None: ...


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Linear(768, 4, bias=False)],
        [nn.Flatten(), nn.Linear(768, 4), nn.Unflatten(1, (2, 2)), nn.Flatten()],
        [nn.Flatten(), nn.Linear(768, 4), nn.BatchNorm1d(4)],
    ],
    ids=["no bias", "four outputs are relied on", "a layer after the head"],
)
def test_a_student_that_cannot_have_two_heads_is_refused(layers: list[nn.Module]) -> None:
    model = Model.of(nn.Sequential(*layers), input_spec=SPEC)
    with pytest.raises(TutelageError, match=r"^loss\.two_heads: Sequential cannot have a second head"):
        TwoHeads(model)


@pytest.mark.parametrize(
    ("changes", "missing"), [({"label_weight": 0}, "the labels"), ({"weight": 0}, "a teacher")]
)
def test_two_heads_need_two_sources(changes: dict, missing: str) -> None:
    with pytest.raises(
        TutelageError, match=rf"^loss\.two_heads: .* no term of the loss needs {missing}; add one"
    ):
        check_losses(parse_recipe({"loss": {"two_heads": True, **changes}}))
    terms = [{"dkd": {"weight": 1}}, {"cross_entropy": {"weight": 0.5}}]
    check_losses(parse_recipe({"loss": {"two_heads": True, "terms": terms}}))


# --- selection


def test_every_candidate_has_its_best_share_and_is_folded_with_it() -> None:
    """One number is the body and two are the heads; a candidate is the better, the nearer its answer is to 10."""
    two = TwoHeads(student("sequential"))
    weight, bias = two.names

    def heads(labels: float, teacher: float) -> State:
        return {
            "body": torch.tensor([labels]),
            weight: torch.tensor([[labels], [teacher]]),
            bias: torch.zeros(2),
        }

    start = {"body": torch.tensor([1.0]), weight: torch.tensor([[1.0]]), bias: torch.zeros(1)}

    def evaluate(state: State) -> dict[str, float]:
        if state is start:
            return {"top1": 0.0, "nll": 9.0}
        labels, teacher = state[weight].flatten().tolist()
        errors = {share: abs(10 - ((1 - share) * labels + share * teacher)) for share in SHARES}
        share = min(errors, key=errors.__getitem__)
        return {"top1": 100 - errors[share], "nll": errors[share], "share": share}

    trained = {"last": heads(4.0, 12.0), "ema": heads(13.0, 20.0)}
    choice = choose(start, trained, evaluate, lambda state: state, SelectionRecipe(), two)
    found = {c.name: c for c in choice.candidates}
    assert found["start"].share is None
    assert same(found["start"].state, start)
    assert choice.kept is found["last"]
    assert found["last"].share == 0.75  # 0.25 * 4 + 0.75 * 12 = 10
    assert found["last"].state[weight].tolist() == [[10.0]]
    assert (found["ema"].share, found["ema"].state[weight].item()) == (0.0, 13.0)
    # half way from the start: heads of 2.5 and 6.5, and of these the teacher's alone
    assert (found["last@0.5"].share, found["last@0.5"].state[weight].item()) == (1.0, 6.5)
    record = {c["name"]: c for c in choice.record()["candidates"]}
    assert "share" not in record["start"]
    assert record["last"]["share"] == 0.75
    assert record["last"]["val"] == {"top1": 100.0, "nll": 0.0}


# --- the loop


def two_headed(**settings: object) -> Stage:
    stage = small_stage(objective=Objective(terms_of(LossRecipe()), two_heads=True), **settings)
    return replace(stage, model=TwoHeads(stage.model).model)


@pytest.mark.parametrize("step", [2, STEPS + 3])
def test_a_stopped_stage_ends_with_the_same_two_heads(tmp_path: Path, step: int) -> None:
    whole = train(two_headed(), small_context(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(two_headed(), small_context(tmp_path / "stopped", StopAt(step)))
    after = train(two_headed(), small_context(tmp_path / "stopped"))
    assert after.states.keys() == {"last", "best", "ema"}
    assert all(same(after.states[name], whole.states[name]) for name in after.states)
    assert [row["loss"] for row in after.rows] == [row["loss"] for row in whole.rows]


def test_both_heads_are_trained_and_averaged(tmp_path: Path) -> None:
    stage = two_headed(ema=0.5)
    start = state_of(stage.model.module)
    states = train(stage, small_context(tmp_path)).states
    (name,) = [n for n, value in start.items() if value.shape[:1] == (20,) and value.ndim == 2]
    halves = [[states[key][name].chunk(2)[half] for key in ("last", "ema")] for half in (0, 1)]
    for half, (last, ema) in enumerate(halves):
        first = start[name].chunk(2)[half]
        assert not torch.equal(last, first)
        assert not torch.equal(ema, last)
        assert (ema - last).norm() < (ema - first).norm()  # the average follows the trained head
    assert not torch.equal(halves[0][0], halves[1][0])


# --- a run


def checked_run(tree: dict, root: Path, name: str) -> Checked:
    recipe = parse_recipe(tree | {"name": name})
    prepared = prepare(recipe, begin(recipe, root, "test"), Silent())
    return preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))


@pytest.mark.parametrize("mode", ["live", "cached"])
def test_the_kept_student_of_a_run_has_one_head_and_the_figures_of_its_record(
    tiny: dict, tmp_path: Path, mode: str
) -> None:
    tiny["teacher"] |= {"fit": "no", "others": ["test_efficientnet@none"]}
    tiny["targets"] = {"mode": mode}
    tiny["loss"]["label_weight"] = 0.5
    plain = train_control(checked_run(tiny, tmp_path, "plain"))
    tiny["loss"]["two_heads"] = True
    checked = checked_run(tiny, tmp_path, "two")
    control = train_control(checked)
    assert plain is not None
    assert control is not None
    assert same(state_of(control.module), state_of(plain.module))  # the control has one head
    distilled = train_student(checked)
    prepared, val = checked.prepared, checked.prepared.splits.val
    record = read_json(prepared.run.candidates)
    shares = {c["name"]: c.get("share") for c in record["candidates"]}
    assert shares.pop("start") is None
    assert set(shares.values()) <= set(SHARES)
    kept = load_model(f"test_efficientnet@{prepared.run.student}").at(32)
    assert kept.num_classes == 10
    _has_figures(prepared, kept, record, record["kept"], val)
    for candidate in distilled.choice.candidates:  # also those that are not kept
        _has_figures(prepared, checked.student.copied(candidate.state), record, candidate.name, val)
    assert record["training"]["start_val"]["loss"] > 0


def _has_figures(prepared: object, model: Model, record: dict, name: str, val: object) -> None:
    found = predict(prepared, model, val)  # type: ignore[arg-type]
    figures = quality(found.logits, torch.from_numpy(val.labels)[found.index])  # type: ignore[attr-defined]
    (wanted,) = [c["val"] for c in record["candidates"] if c["name"] == name]
    assert figures.nll == pytest.approx(wanted["nll"], abs=1e-4)
    assert figures.top1 == pytest.approx(wanted["top1"], abs=1e-3)


def test_a_choice_records_no_share_where_there_is_one_head(tiny: dict, tmp_path: Path) -> None:
    tiny["teacher"]["fit"] = "no"
    tiny["selection"] = {"interpolate": False, "soup": False}
    choice: Choice = train_student(checked_run(tiny, tmp_path, "run")).choice
    assert all("share" not in candidate for candidate in choice.record()["candidates"])
