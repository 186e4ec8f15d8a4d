"""Targets out of fold: no image is answered by a head that was fitted to it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.distillation.test_teacher import losses_of
from tests.helpers.stages import network

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Subset, make_splits
from tutelage.distillation.folds import Folds, assign_folds, with_fold_heads
from tutelage.distillation.probe import fit_probe
from tutelage.distillation.teacher import Teacher
from tutelage.models.source import Model
from tutelage.models.weights import save_weights
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.train import train_student

INDEX = np.arange(10)
LOADING = Loading(0, BadImages(0))


@pytest.fixture(scope="module")
def subset() -> Subset:
    return make_splits(DataRecipe(train="digits", limit=203)).train


@pytest.fixture(scope="module")
def probe(subset: Subset) -> Model:
    val = make_splits(DataRecipe(train="digits", limit=203)).val
    model = network("test_resnet", 0)
    return fit_probe(model, subset, val, INDEX, Runtime.start(), LOADING).put_on(model)


def relabelled(subset: Subset, positions: np.ndarray) -> Subset:
    """Give some images of a subset the next class as their label."""
    images = copy.copy(subset.images)
    labels = np.array(images.labels)
    labels[subset.indices[positions]] = (labels[subset.indices[positions]] + 1) % 10
    images.labels = labels
    return replace(subset, images=images)


def test_folds_have_equal_shares_of_each_class_and_leave_unlabelled_images_to_the_whole_probe(
    subset: Subset,
) -> None:
    folds = assign_folds(subset, len(subset) + 7, 4, 0)
    assert folds.head[len(subset) :].tolist() == [4] * 7
    head = folds.head[: len(subset)].numpy()
    for name in range(10):
        counts = np.bincount(head[subset.labels == name], minlength=4)
        assert len(counts) == 4  # no labelled image is left to the whole probe
        assert counts.max() - counts.min() <= 1
    assert torch.equal(folds.head, assign_folds(subset, len(subset) + 7, 4, 0).head)
    assert not torch.equal(folds.head, assign_folds(subset, len(subset) + 7, 4, 1).head)


def test_more_folds_than_images_of_a_class_are_refused(subset: Subset) -> None:
    with pytest.raises(TutelageError, match=r"^targets\.folds=90: the largest class has \d+ labelled"):
        assign_folds(subset, len(subset), 90, 0)


def test_a_head_is_the_probe_that_is_fitted_to_the_other_folds_alone(subset: Subset, probe: Model) -> None:
    """The reference is scikit-learn on the features of the other folds, standardised as the probe's are."""
    from sklearn.linear_model import LogisticRegression

    folds = assign_folds(subset, len(subset), 3, 0)
    wide = with_fold_heads(probe, folds, 0.1, subset, INDEX, Runtime.start(), LOADING)
    images = next(iter(_crops(subset, probe)))
    with torch.no_grad():
        features = probe.module.forward_head(probe.module.forward_features(images), pre_logits=True)
        every = wide.module(images).unflatten(1, (4, 10))
        torch.testing.assert_close(every[:, 3], probe.module(images), rtol=1e-4, atol=1e-4)
    x, labels = features.double().numpy(), subset.labels
    for fold in range(3):
        others = (folds.head != fold).numpy()
        mean, std = x[others].mean(0), x[others].std(0, ddof=1)
        std = np.maximum(std, max(np.sqrt((std**2).mean()), 1e-6))
        reference = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(
            (x[others] - mean) / std, labels[others]
        )
        wanted = torch.from_numpy(reference.predict_proba((x - mean) / std)).float()
        torch.testing.assert_close(every[:, fold].softmax(1), wanted, rtol=0, atol=0.02)
    answers = Teacher(wide, folds=folds).outputs([images], torch.arange(len(subset))).logits
    for position, fold in enumerate(folds.head.tolist()):
        torch.testing.assert_close(answers[position], every[position, fold], rtol=1e-3, atol=1e-3)


def _crops(subset: Subset, model: Model) -> list[torch.Tensor]:
    from tutelage.data.loading import eval_loader, normalise

    batches = eval_loader(subset, [model.input_spec], len(subset), 0)
    return [normalise(batch["images"][0], model.input_spec) for batch in batches]


def test_the_labels_of_a_fold_change_nothing_in_its_own_answers(subset: Subset, probe: Model) -> None:
    folds = assign_folds(subset, len(subset), 3, 0)
    first = torch.nonzero(folds.head == 0).flatten().numpy()
    heads = []
    for train in (subset, relabelled(subset, first)):
        wide = with_fold_heads(probe, folds, 0.1, train, INDEX, Runtime.start(), LOADING)
        heads.append(wide.module.get_classifier().weight.detach().unflatten(0, (4, 10)))
    assert torch.equal(heads[0][0], heads[1][0])
    assert not torch.equal(heads[0][1], heads[1][1])


# --- a run


@pytest.fixture
def out_of_fold(tiny: dict, tmp_path: Path) -> dict:
    """A teacher whose body counts as pretrained, and whose head is a probe."""
    model = network("test_resnet", 0)
    torch.manual_seed(0)
    metadata = replace(model, class_ids=tuple("abcdefghij")).metadata()
    save_weights(model.module, tmp_path / "teacher.safetensors", metadata)
    tiny["teacher"] |= {"model": f"test_resnet@{tmp_path / 'teacher.safetensors'}", "fit": "probe"}
    tiny["selection"] = {"interpolate": False, "soup": False}
    tiny["targets"] = {"folds": 3}
    return tiny


def student_of(tree: dict, root: Path, name: str) -> Run:
    recipe = parse_recipe(tree | {"name": name})
    prepared = prepare(recipe, begin(recipe, root, "test"), Silent())
    train_student(preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared))))
    return prepared.run


def test_cached_and_live_training_have_the_same_losses(out_of_fold: dict, tmp_path: Path) -> None:
    live = student_of(out_of_fold, tmp_path, "live")
    out_of_fold["targets"] |= {"mode": "cached", "directory": str(tmp_path / "shared")}
    cached = student_of(out_of_fold, tmp_path, "cached")
    for ours, theirs in zip(losses_of(cached), losses_of(live), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)
    out_of_fold["targets"] |= {"folds": None}
    plain = student_of(out_of_fold, tmp_path, "plain")
    assert losses_of(plain)[0][0] != pytest.approx(losses_of(live)[0][0], rel=1e-2)
    assert len(list((tmp_path / "shared" / "targets").glob("targets-*"))) == 2


def test_the_temperature_is_chosen_for_the_answers_out_of_fold(out_of_fold: dict, tmp_path: Path) -> None:
    """What counts is how certain these are on training views, and not the probe that was fitted to all images."""
    out_of_fold["loss"] = {"label_weight": 0.1, "teacher_temperature": 1.0}
    chosen = []
    for folds in (3, None):
        out_of_fold["targets"] = {"folds": folds}
        recipe = parse_recipe(out_of_fold | {"name": f"folds-{folds}"})
        prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
        preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
        chosen.append(read_json(prepared.run.choices)["loss.temperature"]["why"])
    assert chosen[0] != chosen[1]  # the mean entropies on training views and on val


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": {"fit": "auto"}}, "only a linear probe can have folds; set teacher.fit=probe"),
        ({"view": {"mixup": 0.2}}, "a mixed image is in two folds; set view.mixup"),
    ],
)
def test_what_cannot_have_folds_is_refused_with_the_recipe(
    out_of_fold: dict, changes: dict, says: str
) -> None:
    for part, setting in changes.items():
        out_of_fold[part] = out_of_fold[part] | setting
    with pytest.raises(TutelageError, match=rf"targets\.folds: .*{says}"):
        parse_recipe(out_of_fold)


def test_a_teacher_that_cannot_be_a_probe_is_refused(out_of_fold: dict, tmp_path: Path) -> None:
    out_of_fold["teacher"]["model"] = "test_resnet@none"
    recipe = parse_recipe(out_of_fold | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    with pytest.raises(
        TutelageError, match=r"^teacher\.fit=probe: test_resnet\S* cannot have a linear probe"
    ):
        fit_teachers(prepared)


def test_each_image_is_answered_by_its_own_head() -> None:
    folds = Folds(torch.tensor([2, 0, 1, 2]), 2)
    logits = torch.arange(18.0).view(3, 6)  # three images, three heads of two classes
    assert folds.pick(logits, torch.tensor([3, 1, 2])).tolist() == [[4.0, 5.0], [6.0, 7.0], [14.0, 15.0]]
