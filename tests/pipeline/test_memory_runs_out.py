"""Memory that runs out anywhere in a run is one line with exit code 2, and what was made stays usable."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from tests.conftest import TINY
from tests.helpers.command_line import call
from tests.helpers.small_memory import CPU, GPU, takes
from timm.models import EfficientNet, ResNet

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.data.splits import make_splits
from tutelage.distillation.distiller import Distiller
from tutelage.evaluation.predict import predict_logits
from tutelage.models.registry import load_model
from tutelage.pipeline.run import Stations, begin


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = copy.deepcopy(TINY)
    tree["data"]["limit"] = 120
    tree["train"] |= {"epochs": 1}
    tree["teacher"]["fit"] = "no"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line of a command that ends with exit code 2, on standard error."""
    capsys.readouterr()
    assert call(*map(str, words), "--progress", "none") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_run_says_what_fits_and_is_continued_where_memory_suffices(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ("distill", recipe, "--name", "run", "--runs", tmp_path)
    with monkeypatch.context() as patched:
        takes(patched, 20, Distiller)
        line = error_of(capsys, *begun)
    assert line.startswith("train.batch_size=32: control on cpu: out of memory (CUDA out of memory. Tried")
    assert line.endswith(
        "a batch of 16 fits: begin a new run with train.batch_size=16, or resume this one with more free memory"
    )
    run = Run(tmp_path / "run")
    text = run.recipe.read_text()
    run.recipe.write_text(text.replace("batch_size: 32", "batch_size: 16"))
    assert "train.batch_size was 32 when the run began and is now 16" in error_of(capsys, "resume", run.path)
    run.recipe.write_text(text)
    assert call("resume", str(run.path), "--progress", "none") == 0
    assert run.student.exists()


def test_the_preflight_says_what_fits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(monkeypatch, 9, EfficientNet, CPU, training=True)
    line = error_of(capsys, "distill", recipe, "--name", "run", "--runs", tmp_path)
    assert line.startswith("train.batch_size=32: pre-flight: training of the student on cpu: out of memory (")
    assert "a batch of 8 fits: begin a new run with train.batch_size=8," in line


def test_the_preflight_of_a_large_teacher(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = takes(monkeypatch, 9, ResNet)
    line = error_of(capsys, "distill", recipe, "--name", "run", "--runs", tmp_path)
    assert line.startswith("train.batch_size=32: pre-flight: answers of the teacher on cpu: out of memory (")
    assert "a batch of 8 fits" in line
    assert max(sizes) == 32


def test_elsewhere_in_a_run_the_line_names_the_keys(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tutelage.pipeline.run.check_teacher", full)
    line = error_of(capsys, "distill", recipe, "--name", "run", "--runs", tmp_path)
    assert line == (
        "out of memory (MemoryError); begin a new run with smaller models, a smaller teacher.resolution or "
        "student.resolution, or a train.batch_size below 32; or free memory: "
        f"`tutelage resume {tmp_path / 'run'}` continues this run"
    )


def test_a_station_after_the_training_names_the_keys_too(recipe: Path, tmp_path: Path) -> None:
    after = Stations(begin(load_recipe(recipe), tmp_path, "test"), alone=True)

    def full() -> None:
        raise GPU

    after.attempt("the robustness", full)
    assert "student.resolution" in after.failed["the robustness"]


def test_another_command_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(monkeypatch, 4, EfficientNet)
    model = "test_efficientnet@none"
    capsys.readouterr()
    assert call("compare", model, "--batch-size", "8", "--data", "digits") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"error: out of memory \(CUDA out of memory.*\); use smaller models or resolutions", line
    )


def test_other_errors_of_a_command_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, 4, EfficientNet, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        call("compare", "test_efficientnet@none", "--data", "digits")


@pytest.mark.parametrize("fitting", [128, 50, 1])
def test_an_evaluation_is_made_in_smaller_parts(monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    model = load_model("test_efficientnet@none", num_classes=10).at(32)
    part = make_splits(parse_recipe({"data": {"train": "digits", "limit": 300}}).data).test
    whole = predict_logits(model.module, model.input_spec, part, Runtime.start(), Loading(0))
    sizes = takes(monkeypatch, fitting, EfficientNet)
    found = predict_logits(model.module, model.input_spec, part, Runtime.start(), Loading(0))
    assert torch.equal(found.index, whole.index)
    torch.testing.assert_close(found.logits, whole.logits)
    assert sizes.count(128) == len(part) // 128 if fitting == 128 else sizes.count(128) == 1


def test_an_evaluation_of_one_image_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("test_efficientnet@none", num_classes=10).at(32)
    part = make_splits(parse_recipe({"data": {"train": "digits", "limit": 100}}).data).test
    takes(monkeypatch, 0, EfficientNet)
    with pytest.raises(
        TutelageError, match=r"out of memory with one image of 32 x 32 px .*teacher\.resolution"
    ):
        predict_logits(model.module, model.input_spec, part, Runtime.start(), Loading(0))
