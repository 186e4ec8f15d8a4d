"""A linear probe is scikit-learn's logistic regression, and a head of the network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.helpers.fitted import fit
from tests.helpers.stages import network, same
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading, eval_loader, normalise
from tutelage.data.splits import Splits, Subset, make_splits
from tutelage.distillation.checkpoint import state_of
from tutelage.distillation.probe import STRENGTHS, can_be_probed, fit_probe
from tutelage.evaluation.predict import predict_logits
from tutelage.models.source import Model
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.prepare import prepare

LOADING = Loading(0)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(DataRecipe(train="digits", limit=400))


def features_by_hand(model: Model, subset: Subset) -> Tensor:
    """Of the example network: pooled maps, below its classifier."""
    found = []
    with torch.no_grad():
        for batch in eval_loader(subset, [model.input_spec], 64, 0):
            images = normalise(batch["images"][0], model.input_spec)
            found.append(model.module.forward_head(model.module.forward_features(images), pre_logits=True))
    return torch.cat(found)


def test_a_probe_is_the_regression_of_lowest_nll_on_val(splits: Splits) -> None:
    model = network("test_resnet", 0)
    probe = fit_probe(model, splits.train, splits.val, np.arange(10), Runtime.start(), LOADING)
    ours, theirs = features_by_hand(model, splits.train), features_by_hand(model, splits.val)
    mean, std = ours.mean(0), ours.std(0)
    std = std.clamp_min(std.square().mean().sqrt())
    nll = {}
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=200)
        regression.fit(((ours - mean) / std).double().numpy(), splits.train.labels)
        found = regression.predict_log_proba(((theirs - mean) / std).double().numpy())
        nll[strength] = -found[np.arange(len(theirs)), splits.val.labels].mean()
    assert probe.strength == min(nll, key=nll.__getitem__)
    assert probe.nll == pytest.approx(nll[probe.strength], abs=1e-4)
    assert probe.nll < math.log(10)


def test_its_head_gives_its_figures_and_the_model_stays(splits: Splits) -> None:
    model = network("test_efficientnet", 0)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    probe = fit_probe(model, splits.train, splits.val, np.arange(10), Runtime.start(), LOADING)
    probed = probe.put_on(model)
    found = predict_logits(probed.module, probed.input_spec, splits.val, Runtime.start(), LOADING)
    right = found.logits.argmax(1).numpy() == splits.val.labels[found.index]
    assert 100 * right.mean() == pytest.approx(probe.top1, abs=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert not model.module.training
    changed = {name for name, tensor in probed.module.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


class Pixels(nn.Module):
    """64 grey values as features, half of which hardly vary."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(64).index_fill(0, torch.arange(32), 1e-6))
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        grey = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8)
        return self.fc(grey.flatten(1) * self.scale)


def test_a_feature_that_hardly_varies_gets_no_large_weight(splits: Splits) -> None:
    """Standardised by its own deviation, its weight was so large that a fit from the probe opened at a loss of 61."""
    model = Model.of(Pixels(), input_spec=InputSpec(32, 32, crop_pct=1.0))
    probe = fit_probe(model, splits.train, splits.val, np.arange(10), Runtime.start(), LOADING)
    assert probe.weight.abs().max() < 100
    assert probe.top1 > 50


def test_two_classes_and_a_class_without_an_image(splits: Splits) -> None:
    """scikit-learn gives one row for two classes, and none for a class that it has not seen."""
    from dataclasses import replace

    model = network("test_resnet", 0)
    train, val = (
        replace(subset, indices=subset.indices[np.isin(subset.labels, (3, 7))])
        for subset in (splits.train, splits.val)
    )
    probe = fit_probe(model, train, val, np.arange(10), Runtime.start(), LOADING)
    assert probe.top1 > 80
    logits = features_by_hand(model, val) @ probe.weight.T + probe.bias
    assert set(logits.argmax(1).tolist()) <= {3, 7}


def test_what_can_be_probed() -> None:
    assert can_be_probed(network("test_vit", 0))
    assert can_be_probed(network("test_convnext", 0))
    bare = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10, bias=False)
    )
    assert not can_be_probed(Model.of(bare, input_spec=InputSpec(32, 32)))


# --- in a run


@pytest.fixture(scope="module")
def body(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that knows the digits by other names: its head is new to the data."""
    place = tmp_path_factory.mktemp("body") / "body.safetensors"
    spec = fit("test_resnet", splits.train, place, epochs=2)
    from safetensors.torch import load_file, save_file

    save_file({name: tensor for name, tensor in load_file(place).items() if not name.startswith("fc.")} | {
        "fc.weight": torch.zeros(11, load_file(place)["fc.weight"].shape[1]), "fc.bias": torch.zeros(11)
    }, place)  # fmt: skip
    return spec


def tree(tiny: dict[str, Any], body: str, **more: Any) -> dict[str, Any]:
    tiny["data"]["limit"] = 400
    tiny["student"] = {"model": body, "resolution": 32, "crop_pct": 1.0} | more.pop("student", {})
    return tiny | more


def fitted(tree: dict[str, Any], root: Path, name: str) -> Fitted:
    recipe = parse_recipe(tree | {"name": name})
    prepared = prepare(recipe, begin(recipe, root, "test"), Silent())
    return Fitted(prepared, fit_teachers(prepared), fit_head(prepared))


def test_a_new_head_begins_as_a_probe_without_an_epoch(
    tiny: dict[str, Any], body: str, tmp_path: Path
) -> None:
    found = fitted(tree(tiny, body), tmp_path, "run")
    run = found.prepared.run
    assert [row for row in read_jsonl(run.metrics) if row["stage"] == "head-fit"] == []
    val = found.prepared.splits.val
    logits = predict_logits(
        found.student.module, found.student.input_spec, val, Runtime.start(), LOADING
    ).logits
    assert (logits.argmax(1).numpy() == val.labels).mean() > 0.7
    again = fitted_again(found)
    assert all(
        tensor.equal(again.module.state_dict()[name])
        for name, tensor in found.student.module.state_dict().items()
    )


def fitted_again(found: Fitted) -> Model:
    """As a resumed run does: the probe is read and not fitted."""
    import tutelage.pipeline.stages.fit as stage

    def never(*_: object) -> None:
        raise AssertionError("it was fitted again")

    original, stage.fit_probe = stage.fit_probe, never  # type: ignore[assignment]
    try:
        return fit_head(found.prepared)
    finally:
        stage.fit_probe = original  # type: ignore[assignment]


def test_a_full_fit_that_harms_the_probe_is_not_kept(tiny: dict[str, Any], body: str, tmp_path: Path) -> None:
    tiny["teacher"] = {"model": body, "resolution": 32, "crop_pct": 1.0, "fit": {"epochs": 1, "lr": 3.0}}
    spoilt = fitted(tree(tiny, body), tmp_path, "spoilt").teachers[0]
    tiny["teacher"]["fit"] = "probe"
    probe = fitted(tree(tiny, body), tmp_path, "probe").teachers[0]
    assert same(state_of(spoilt.module), state_of(probe.module))


def test_a_probe_replaces_a_head_that_has_the_classes(
    tiny: dict[str, Any], splits: Splits, tmp_path: Path
) -> None:
    known = fit("test_resnet", splits.train, tmp_path / "known.safetensors", epochs=1)
    tiny["teacher"] = {"model": known, "resolution": 32, "crop_pct": 1.0, "fit": "no"}
    kept = fitted(tiny, tmp_path, "no")
    assert known not in kept.prepared.class_mapping.new
    tiny["teacher"]["fit"] = "probe"
    probe = fitted(tiny, tmp_path, "probe")
    assert known in probe.prepared.class_mapping.new
    before, after = (state_of(found.teachers[0].module) for found in (kept, probe))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_random_weights_have_no_probe(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["teacher"]["fit"] = "probe"
    with pytest.raises(
        TutelageError, match=r"teacher.fit=probe: test_resnet@none cannot have a linear probe"
    ):
        fitted(tiny, tmp_path, "run")
