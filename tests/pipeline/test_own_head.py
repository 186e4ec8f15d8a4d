"""A head that has the classes of the data may still not serve for its images: the run finds out before it begins."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import TINY
from tests.helpers.fitted import fit

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.pipeline.run import begin, distill


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    fit("test_resnet", whole(open_source("digits")), path, epochs=6)
    return path


@pytest.fixture(scope="module")
def poor(good: Path) -> Path:
    """The same features under a head that says nothing of them."""
    path = good.with_name("poor.safetensors")
    weights = load_file(good)
    (head,) = (key for key, value in weights.items() if value.ndim == 2 and len(value) == 10)
    weights[head] = torch.zeros_like(
        weights[head]
    )  # a random one would have an order of the classes that fits
    with safe_open(good, "pt") as file:
        save_file(weights, path, file.metadata())
    return path


def tree(teacher: Path, **fit_: object) -> dict:
    made = copy.deepcopy(TINY)
    made["teacher"] |= {"model": f"test_resnet@{teacher}", "fit": "auto"} | fit_
    made["train"] |= {"epochs": 1}
    return made | {"name": "own-head", "control": False}


def done(made: dict, root: Path) -> tuple[Run, dict]:
    recipe = parse_recipe(made)
    run = begin(recipe, root, "test")
    distill(recipe, run, Silent())
    return run, read_json(run.choices)


def test_a_head_that_serves_stays(good: Path, tmp_path: Path) -> None:
    run, choices = done(tree(good), tmp_path)
    assert choices["teacher.fit"]["value"] == "own head"
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"distill"}


def test_a_head_that_does_not_serve_is_replaced_and_the_teacher_fitted(poor: Path, tmp_path: Path) -> None:
    run, choices = done(tree(poor), tmp_path)
    assert choices["teacher.fit"]["value"] == "new head"
    assert "a linear probe of 240 training images has" in choices["teacher.fit"]["why"]
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"teacher-fit", "distill"}
    assert run.teacher.exists()


def test_it_stays_where_the_recipe_says_so(poor: Path, tmp_path: Path) -> None:
    run, choices = done(tree(poor, fit="no"), tmp_path)
    assert "teacher.fit" not in choices
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"distill"}


def test_a_resumed_run_has_the_head_that_it_began_with(poor: Path, good: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(tree(poor))
    run = begin(recipe, tmp_path, "test")

    class StoppedError(Exception):
        pass

    class StopsAtTheFit(Silent):
        def say(self, line: str) -> None:
            if line.startswith("teacher-fit"):
                raise StoppedError

    with pytest.raises(StoppedError):
        distill(recipe, run, StopsAtTheFit())
    before = read_json(run.choices)["teacher.fit"]
    assert before["value"] == "new head"
    lines: list[str] = []

    class Listens(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    distill(recipe, run, Listens())
    assert read_json(run.choices)["teacher.fit"] == before
    assert not any(line.startswith("auto: teacher.fit =") for line in lines)
    assert any(line.startswith("teacher-fit: a linear probe") for line in lines)
