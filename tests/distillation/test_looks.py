"""A teacher's answer for a view is the mean over its mirror image and further resolutions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.distillation.test_teacher import losses_of, trained
from tests.helpers.stages import network
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.distillation.distiller import Distiller, converted
from tutelage.distillation.looks import Looks
from tutelage.distillation.losses import KL, FeatureMSE
from tutelage.distillation.objective import Objective
from tutelage.distillation.teacher import Teacher
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.prepare import prepare

CPU = torch.device("cpu")
BOTH = Looks(flip=True, resolutions=(48, 32, 64))


def views(teacher: Teacher) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, spec.height, spec.width, generator=generator) for spec in teacher.input_specs]


@torch.no_grad()
def mean_probability(model: Model, images: list[Tensor], flip: bool) -> Tensor:
    looks = [look for batch in images for look in ([batch, batch.flip(-1)] if flip else [batch])]
    return torch.stack([model.module(look).softmax(1) for look in looks]).mean(0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_answer_is_the_mean_probability_of_all_looks(name: str, flip: bool) -> None:
    """A transformer is copied with other position embeddings for each resolution, a convolutional network is not."""
    torch.manual_seed(0)
    model = load_model(f"{name}@none", num_classes=10).at(64)
    looks = Looks(flip, (96, 64))
    teacher = Teacher(model, looks=looks)
    assert [spec.height for spec in teacher.input_specs] == [64, 96]  # its own is not counted twice
    images = views(teacher)
    sizes = [model, model.copied().at(96)]
    wanted = torch.stack([mean_probability(m, [x], flip) for m, x in zip(sizes, images, strict=True)]).mean(0)
    logits = teacher.outputs(images).logits
    torch.testing.assert_close(logits.softmax(1), wanted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(4))


def test_each_of_several_teachers_counts_alike() -> None:
    models = [network("test_resnet", 0), network("test_efficientnet", 1).at(48)]
    teacher = Teacher(models, looks=BOTH)
    assert [spec.height for spec in teacher.input_specs] == [32, 48, 64, 48, 32, 64]
    images = views(teacher)
    wanted = [mean_probability(m, x, True) for m, x in zip(models, (images[:3], images[3:]), strict=True)]
    found = teacher.outputs(images).logits.softmax(1)
    torch.testing.assert_close(found, (wanted[0] + wanted[1]) / 2, rtol=1e-3, atol=1e-5)


def test_a_view_and_its_mirror_image_have_one_answer() -> None:
    teacher = Teacher(network("test_resnet", 0), looks=Looks(flip=True))
    images = views(teacher)
    mirrored = [batch.flip(3) for batch in images]
    torch.testing.assert_close(teacher.outputs(images).logits, teacher.outputs(mirrored).logits)
    plain = Teacher(network("test_resnet", 0))
    assert (plain.outputs(images).logits - plain.outputs(mirrored).logits).abs().max() > 0.01


def test_a_distiller_converts_its_images_to_every_resolution_and_taps_the_view_itself() -> None:
    model, student = network("test_resnet", 0), network("test_efficientnet", 1)
    terms = [KL(temperature=1.0), FeatureMSE(student="blocks.1", teacher="layer2", projector="linear")]
    distiller = Distiller(student, Teacher(model, looks=BOTH), Objective(terms))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    outputs = distiller._run_teacher(images, None)
    spec = student.input_spec
    sizes = [converted(images, spec, model.input_spec.at(pixels)) for pixels in (32, 48, 64)]
    torch.testing.assert_close(
        outputs.logits.softmax(1), mean_probability(model, sizes, True), rtol=1e-3, atol=1e-5
    )
    plain = Teacher(model, layers=["layer2"]).outputs(sizes[:1])
    torch.testing.assert_close(outputs.features["layer2"], plain.features["layer2"])


def test_the_key_of_a_cache_includes_the_looks_and_is_as_before_without_them() -> None:
    model = network("test_resnet", 0)
    plain = Teacher(model).identity()
    assert [set(entry) for entry in plain] == [{"name", "weights", "input"}]
    others = [Looks(flip=True), Looks(resolutions=(48,)), Looks(resolutions=(64,)), BOTH]
    found = [Teacher(model, looks=looks).identity() for looks in others]
    assert all(one not in found[:place] and one != plain for place, one in enumerate(found))


@pytest.fixture
def averaged(tiny: dict, tmp_path: Path) -> Run:
    tiny["targets"] = {"flip": True, "resolutions": [48]}
    return trained(tiny, tmp_path, "live")


def test_cached_and_live_training_have_the_same_losses(tiny: dict, tmp_path: Path, averaged: Run) -> None:
    tiny["targets"] = {"flip": True, "resolutions": [48], "mode": "cached"}
    cached = trained(tiny, tmp_path, "cached")
    tiny["targets"] = {}
    plain = trained(tiny, tmp_path, "plain")
    for ours, theirs in zip(losses_of(cached), losses_of(averaged), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)
    assert losses_of(plain)[0][0] != pytest.approx(losses_of(averaged)[0][0], rel=5e-2)


def test_a_resolution_that_does_not_work_is_refused_before_any_work(tiny: dict, tmp_path: Path) -> None:
    tiny["teacher"] |= {"model": "test_vit@none", "resolution": 64}
    recipe = parse_recipe(tiny | {"name": "run", "targets": {"resolutions": [96, 50]}})
    run = begin(recipe, tmp_path, "test")
    with pytest.raises(TutelageError, match=r"^targets\.resolutions: test_vit\S* does not work at 50 px"):
        prepare(recipe, run, Silent())
    assert not run.splits.exists()
