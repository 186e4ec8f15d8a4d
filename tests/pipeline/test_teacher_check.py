"""A teacher that has nothing to teach is found before the student is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.conftest import TINY
from torch import Tensor

from tutelage.cli import main
from tutelage.core.errors import WeakTeacher
from tutelage.core.files import read_json, read_jsonl, write_json
from tutelage.core.recipe import dump_recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.evaluation.predict import Predictions
from tutelage.models.source import Model
from tutelage.pipeline.stages import teacher_check
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.teacher_check import allow_weak_teacher, check_teacher, judged


def logits(right: np.ndarray) -> Tensor:
    """Predictions of two classes where the label is 0."""
    return torch.from_numpy(np.stack([right, ~right], 1)).float()


def compared(teacher: int, control: int, n: int) -> dict[str, Any]:
    """The first of n images are those that a model has right."""
    images = np.arange(n)
    return judged(logits(images < teacher), logits(images < control), torch.zeros(n, dtype=torch.long))


def test_a_teacher_that_is_surely_better_is_not_weak() -> None:
    found = compared(teacher=360, control=320, n=400)
    assert (found["outcome"], found["weak"]) == ("better", False)
    assert "the teacher has 90.00 top-1 and the labels-only control 80.00: +10.00 points" in found["sentence"]


@pytest.mark.parametrize("teacher", [324, 320, 316, 200])
def test_a_teacher_within_noise_or_worse_is_weak(teacher: int) -> None:
    found = compared(teacher, control=320, n=400)
    assert found["weak"]
    words = "significantly worse" if teacher == 200 else "does not show that the teacher is better"
    assert words in found["sentence"]
    assert "equal" not in found["sentence"]


def test_few_images_of_val_stop_nothing() -> None:
    found = compared(teacher=40, control=60, n=99)
    assert not found["weak"]
    assert "99 images of val" in found["sentence"]
    assert "too few" in found["sentence"]
    assert compared(teacher=40, control=60, n=100)["weak"]


def test_images_without_a_label_do_not_count() -> None:
    labels = torch.tensor([0] * 90 + [-1] * 60)
    right = np.ones(150, dtype=bool)
    assert judged(logits(~right), logits(right), labels)["n"] == 90


def checked(tmp_path: Path, val_labels: np.ndarray, allow: bool = False) -> Checked:
    """What the check reads of a run whose teacher is always wrong and whose control is always right."""
    said: list[str] = []
    recipe = parse_recipe({"preflight": {"allow_weak_teacher": allow}})
    found = Predictions(logits(np.zeros(len(val_labels), dtype=bool)), torch.arange(len(val_labels)))
    prepared = SimpleNamespace(
        recipe=recipe,
        run=Run(tmp_path),
        splits=SimpleNamespace(val=SimpleNamespace(labels=val_labels)),
        class_mapping=SimpleNamespace(labels=lambda labels: labels),
        context=SimpleNamespace(
            progress=SimpleNamespace(say=said.append), runtime=SimpleNamespace(is_main=True), said=said
        ),
    )
    return cast(Checked, SimpleNamespace(prepared=prepared, teacher_on_val=found))


@pytest.fixture
def right_control(monkeypatch: pytest.MonkeyPatch) -> Model:
    def predict(_prepared: object, _model: object, subset: Any) -> Predictions:
        n = len(subset.labels)
        return Predictions(logits(np.ones(n, dtype=bool)), torch.arange(n))

    monkeypatch.setattr(teacher_check, "predict", predict)
    return cast(Model, object())


def test_what_is_wrong_with_the_teacher_is_said_in_place_of_what_may_help(
    tmp_path: Path, right_control: Model
) -> None:
    found = {
        "fault": "input",
        "sentence": "onnx:t.onnx: its images. Write teacher.model='onnx:t.onnx?channels=BGR'",
    }
    one = checked(tmp_path, np.zeros(200, dtype=int))
    for records, words in (
        ([found], f" {found['sentence']}; set preflight."),
        ([], " A longer fit (teacher.fit)"),
    ):
        write_json(Run(tmp_path).preflight, {"teacher_descriptions": records})
        with pytest.raises(WeakTeacher) as stopped:
            check_teacher(one, right_control)
        assert words in str(stopped.value)


def test_the_check_stops_a_weak_teacher_and_says_it_with_figures(
    tmp_path: Path, right_control: Model
) -> None:
    with pytest.raises(WeakTeacher, match=r"0\.00 top-1 and the labels-only control 100\.00") as stopped:
        check_teacher(checked(tmp_path, np.zeros(200, dtype=int)), right_control)
    assert "\n" not in str(stopped.value)
    assert str(Run(tmp_path).control) in str(stopped.value)
    assert read_json(Run(tmp_path).teacher_check)["weak"]


def test_an_allowed_weak_teacher_is_only_reported(tmp_path: Path, right_control: Model) -> None:
    one = checked(tmp_path, np.zeros(200, dtype=int), allow=True)
    check_teacher(one, right_control)
    assert "significantly worse" in cast(Any, one.prepared.context).said[0]


@pytest.mark.parametrize("labels", [np.full(200, -1), np.zeros(200, dtype=int)])
def test_without_labels_or_without_a_control_nothing_is_compared(
    tmp_path: Path, right_control: Model, labels: np.ndarray
) -> None:
    control = right_control if labels[0] < 0 else None
    check_teacher(checked(tmp_path, labels), control)
    assert not Run(tmp_path).teacher_check.exists()


def test_the_recipes_of_seeds_allow_it_too(tmp_path: Path) -> None:
    run, seed = Run(tmp_path), tmp_path / "seed-3"
    seed.mkdir()
    run.recipe.write_text(dump_recipe(parse_recipe({})))
    (seed / "recipe.yaml").write_text(dump_recipe(parse_recipe({"train": {"seed": 3}})))
    assert allow_weak_teacher(load_recipe(run.recipe), run).preflight.allow_weak_teacher
    assert load_recipe(run.recipe).preflight.allow_weak_teacher
    changed = load_recipe(seed / "recipe.yaml")
    assert (changed.preflight.allow_weak_teacher, changed.train.seed) == (True, 3)


def test_a_stopped_run_keeps_its_control_shows_why_and_goes_on_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, as a user has it; the teacher is a short fit, and the student is trained for longer."""
    tree = copy.deepcopy(TINY) | {"name": "weak"}
    del tree["preflight"]
    tree["teacher"]["fit"]["epochs"] = 5
    tree["train"]["epochs"] = 5
    recipe = tmp_path / "recipe.yaml"
    write_json(recipe, tree)
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(recipe), "--runs", str(tmp_path), "--progress", "none"])
    assert ended.value.code == 1
    run = Run(tmp_path / "weak")
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "stopped before" in text]
    assert f"tutelage resume {run.path} --allow-weak-teacher" in line
    assert run.control.is_file()
    assert "distill" not in {row["stage"] for row in read_jsonl(run.metrics)}
    page = run.report.read_text(encoding="utf-8")
    assert "This run stopped before the distillation" in page
    assert "was not finished" not in page
    before = run.control.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(run.path), "--allow-weak-teacher", "--progress", "none"])
    assert not ended.value.code
    assert run.control.read_bytes() == before
    assert run.student.is_file()
    assert "stopped before the distillation" not in run.report.read_text(encoding="utf-8")
