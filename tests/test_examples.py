"""The examples run, are short, and do what they say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.killing import free_port, together, tutelage
from tests.helpers.packages import EXAMPLES, install_example

from tutelage.core.files import read_jsonl

SHORT = 55
TERMS = "loss.terms=[{gram: {student: -1, teacher: -1, weight: 10}}, {cross_entropy: {weight: 0.5}}]"
TINY = [
    "distill", "--teacher", "test_resnet@none", "--student", "test_efficientnet@none", "--data", "digits",
    "--epochs", "2", "--lr", "0.01", "train.optimizer=sgd",  # AdamW makes whole steps of rounding errors
    "teacher.resolution=32", "student.resolution=32", "student.dropout=0", "data.limit=97", "data.workers=0",
    "view.flip=0", "train.batch_size=16", "train.frozen_batchnorm=true", "train.precision=fp32",
    "train.warmup_epochs=0", "teacher.fit=no", "control=false", "preflight.allow_weak_teacher=true",
    "train.clip_grad=1",
]  # fmt: skip
ROUNDING = 2e-4  # sums of float32 in another order, over two epochs


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < SHORT


@pytest.mark.parametrize("name", ["own_training_loop", "lightning_module"])
def test_a_loop_of_ones_own(name: str, example: Any) -> None:
    found = example(name).main(epochs=2)
    assert found["teacher"] > 50  # of ten classes
    assert found["student"] > 30


def test_modules_of_ones_own(tmp_path: Path, example: Any) -> None:
    result = example("own_modules").main(
        tmp_path, epochs=1, **{"data.limit": 400, "preflight.allow_weak_teacher": True}
    )
    assert result.student.name == "own-8"
    assert result.student.num_classes == 10
    assert [row.role for row in result.table.rows] == ["teacher", "start", "control", "distilled"]
    assert result.verdict.against == "control"  # a random start is no opponent
    assert result.student_file.is_file()
    assert result.report.is_file()


def losses(run: Path) -> list[list[float]]:
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "distill"]
    assert {*rows[0]["loss"]} == {"total", "gram", "cross_entropy"}
    return [[*row["loss"].values(), row["val"]["nll"]] for row in rows]


def test_a_term_of_a_package_trains_its_projector_in_one_and_in_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On layers, from outside, in one file: DistributedDataParallel sees its projector."""
    install_example("loss_package", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # the processes have the path of this one
    begun = (*TINY, TERMS, "--runs", tmp_path, "--progress", "none", "--name")
    one = tutelage(*begun, "one", log=tmp_path / "log")
    two = together(*begun, "two", log=tmp_path / "log", port=free_port())
    assert [ended.code for ended in (one, *two)] == [0, 0, 0], (one, *two)
    for alone, shared in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert shared == pytest.approx(alone, abs=ROUNDING, rel=1e-4)


def test_a_term_of_a_package_is_resumed_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.distillation.test_distiller import StopAt

    from tutelage.core.recipe import load_recipe
    from tutelage.distillation.stop import Interrupted
    from tutelage.pipeline.run import begin, distill

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    install_example("loss_package", site)
    keys = [word for word in TINY if "=" in word]
    models = ["teacher.model=test_resnet@none", "student.model=test_efficientnet@none", "train.epochs=2"]
    recipe = load_recipe(None, [*keys, *models, TERMS])
    runs = [
        begin(recipe.model_copy(update={"name": name}), tmp_path, "test") for name in ("unbroken", "stopped")
    ]
    silent = StopAt(0)
    distill(recipe, runs[0], silent)
    with pytest.raises(Interrupted):
        distill(recipe, runs[1], StopAt(6))
    distill(recipe, runs[1], silent)
    assert runs[1].student.read_bytes() == runs[0].student.read_bytes()
