"""The linear probe is a row of a run's table, or a line below it says why there is none."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import TINY
from tests.helpers.fitted import fit

from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.core.records import read_predictions
from tutelage.core.run_dir import Run
from tutelage.data.splits import make_splits
from tutelage.distillation.probe import load_probe
from tutelage.evaluation.table import Row, Table
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.seeds import summary
from tutelage.pipeline.stages import fit as stage
from tutelage.report.tables import comparison


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that knows the digits by other names: its head is new to the data."""
    place = tmp_path_factory.mktemp("body") / "body.safetensors"
    spec = fit("test_resnet", make_splits(DataRecipe(train="digits", limit=400)).train, place, epochs=2)
    state = {name: tensor for name, tensor in load_file(place).items() if not name.startswith("fc.")}
    width = load_file(place)["fc.weight"].shape[1]
    save_file(state | {"fc.weight": torch.zeros(11, width), "fc.bias": torch.zeros(11)}, place)
    return spec


def run_of(tmp_path: Path, name: str, **more: Any) -> Run:
    tree = copy.deepcopy(TINY) | {"name": name} | more
    tree["train"] |= {"epochs": 1}
    recipe = parse_recipe(tree)
    run = begin(recipe, tmp_path, "test")
    distill(recipe, run, Silent())
    return run


def table_of(run: Run) -> Table:
    found = read_json(run.comparison)
    return Table([Row.from_dict(row) for row in found["rows"]], found["notes"])


def test_a_start_that_is_the_probe_is_one_row(tmp_path: Path, body: str) -> None:
    student = {"model": body, "resolution": 32, "crop_pct": 1.0}
    run = run_of(tmp_path, "start", student=student, teacher=student | {"fit": "probe"})
    table = table_of(run)
    assert [row.name for row in table.rows] == ["teacher", "start (linear probe)", "control", "distilled"]
    assert list(table.notes) == []
    shown = [row[0].text for row in comparison(table.records()).rows]
    assert shown[1] == "Starting student (linear probe)"
    assert "start (linear probe)" in summary([run, run])["sentence"]
    val = read_json(run.comparison)["val"]
    assert val["n"] == read_json(run.splits)["parts"]["val"]["size"]
    assert {"distilled", "teacher", "control", "start"} == set(val["top1"])
    assert ("control", "start") in [(pair["new"], pair["old"]) for pair in val["pairs"]]
    calibration = read_json(run.comparison)["calibration"]
    assert calibration["before"]["nll"] == pytest.approx(table.rows[-1].nll, abs=1e-5)
    assert calibration["before"]["ece"] == pytest.approx(table.rows[-1].ece, abs=1e-3)
    # one epoch from a probe is far from calibrated, so that the temperature of val is better on test too
    assert calibration["temperature"] != pytest.approx(1, abs=0.05)
    assert calibration["after"]["nll"] < calibration["before"]["nll"]


def test_a_head_that_was_trained_further_has_its_probe_beside_it(
    tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's predictions are those of the network with the head that the checkpoint has."""
    first = itertools.count()
    monkeypatch.setattr(
        stage, "evaluate_state", lambda *_: {"nll": next(first)}
    )  # the fit is kept, not the probe
    student = {"model": body, "resolution": 32, "crop_pct": 1.0, "head_fit": {"epochs": 1, "lr": 1e-2}}
    run = run_of(tmp_path, "further", student=student, control=False)
    assert [row.name for row in table_of(run).rows] == ["teacher", "linear probe", "start", "distilled"]
    probe = load_probe(run.checkpoints / "head-fit.probe.safetensors")
    assert read_json(run.comparison)["val"]["top1"]["probe"] == pytest.approx(probe.top1, abs=1e-4)
    predictions = read_predictions(run.predictions)
    rows = {row.role: row for row in table_of(run).rows}
    assert rows["probe"].top1 == pytest.approx(100 * predictions.right("probe").mean(), abs=1e-4)
    assert "the linear probe" in read_json(run.comparison)["verdict"]["sentence"]


def test_a_random_student_is_seen_beside_the_probe_of_its_teacher(tmp_path: Path, body: str) -> None:
    teacher = {"model": body, "resolution": 32, "crop_pct": 1.0, "fit": {"epochs": 2, "lr": 3e-3}}
    run = run_of(tmp_path, "random", teacher=teacher, control=False)
    table = table_of(run)
    names = [row.name for row in table.rows]
    assert names in (
        ["teacher", "probe of the teacher's features", "start", "distilled"],
        ["teacher (linear probe)", "start", "distilled"],  # the fit was not kept
    )
    assert list(table.notes) == ["no linear probe of the student: its weights are random"]
    assert "its weights are random" in run.report.read_text(encoding="utf-8")


def test_a_teacher_that_is_the_probe_is_one_row(tmp_path: Path, body: str) -> None:
    teacher = {"model": body, "resolution": 32, "crop_pct": 1.0, "fit": "probe"}
    run = run_of(tmp_path, "probe", teacher=teacher, control=False)
    assert [row.name for row in table_of(run).rows] == ["teacher (linear probe)", "start", "distilled"]
