"""The recipes of the CIFAR-100 pairs and the study of methods: they parse, and do what they say on tiny data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.helpers.packages import install_example
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.core.recipe import load_recipe
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import names
from tutelage.distillation.objective import check_losses, terms_of
from tutelage.models.registry import load_model
from tutelage.pipeline.study.plan import load_study

RECIPES = Path(__file__).parents[2] / "recipes"
CIFAR = sorted((RECIPES / "cifar100").glob("*.yaml"))
TINY = ["teacher.model=test_resnet@none", "student.model=test_efficientnet@none"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    install_example("cifar_package", site)


@pytest.mark.parametrize(("name", "millions"), [("resnet8x4", 1.23), ("resnet32x4", 7.43)])
def test_the_networks_have_the_published_sizes(package: None, name: str, millions: float) -> None:
    module = load_model(f"cifar:{name}").module
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_a_recipe_of_a_pair_has_the_published_budget_and_a_step_of_it_learns(
    package: None, path: Path
) -> None:
    recipe = load_recipe(path)
    train = recipe.train
    assert (train.epochs, train.batch_size, train.optimizer, train.lr) == (240, 64, "sgd", 0.05)
    assert (train.momentum, train.weight_decay, train.milestones) == (0.9, 5e-4, (150, 180, 210))
    head = path.read_text().split("\nname:")[0]
    assert f"tutelage distill recipes/cifar100/{path.name}" in head
    assert "Not yet run" in head
    check_losses(recipe)
    distiller = Distiller("cifar:resnet8x4", "cifar:resnet32x4", terms_of(recipe.loss))
    losses = distiller(torch.randn(2, 3, 32, 32), torch.tensor([0, 99]))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def test_a_dry_run_of_a_pair(package: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the digits in place of the download, and without the teacher's 240 epochs."""
    monkeypatch.chdir(tmp_path)
    words = ["data.train=digits", "data.test=null", "data.limit=80", "teacher.fit=no", "data.workers=0"]
    words += [
        "teacher.model=cifar:resnet8x4",
        "train.precision=fp32",
        "data.val_fraction=0.1",
        "export.enabled=false",
    ]
    ended = CliRunner().invoke(app, ["distill", str(RECIPES / "cifar100" / "kd.yaml"), *words, "--dry-run"])
    assert ended.exit_code == 0, ended.output
    assert "240 epochs, batches of 64, lr 0.05" in ended.output


@pytest.mark.parametrize("file", ["methods.yaml", "methods-clothes.yaml"])
def test_the_study_of_methods_names_only_what_there_is(file: str) -> None:
    plan = load_study(RECIPES / file)
    assert plan.space == {}
    found = {
        name
        for variant in plan.variants
        for term in plan.recipe(variant.overrides).loss.terms
        for name in term
    }
    assert found <= set(names())
    wanted = {"kl", "dist", "feature_mse", "vkd", "srd", "rkd", "crd", "review_kd"}
    assert wanted <= found
    for variant in plan.variants:
        check_losses(plan.recipe(variant.overrides))
    assert any(plan.recipe(variant.overrides).loss.two_heads for variant in plan.variants)


@pytest.mark.parametrize("file", ["methods.yaml", "methods-clothes.yaml"])
def test_each_command_in_the_study_s_head_is_one_that_works(file: str) -> None:
    head = (RECIPES / file).read_text().split("\nbase:")[0]
    commands = re.findall(rf"^#\s+tutelage study recipes/{re.escape(file)}(.*)$", head, re.MULTILINE)
    assert commands
    for words in commands:
        overrides = [word for word in words.split() if "=" in word]
        assert load_study(RECIPES / file, overrides).variants
