"""`tutelage teacher`: what is found of a teacher without a student, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from tests.helpers.command_line import call
from tests.helpers.fitted import fit
from tests.helpers.score_files import answers_of, write_csv

from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.models.registry import load_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    return fit("test_resnet", whole(open_source("digits#teacher")), path)


def report_of(tmp_path: Path, *words: str) -> dict:
    file = tmp_path / "report.json"
    assert call("teacher", *words, "--device", "cpu", "--json", str(file)) == 0
    return json.loads(file.read_text())


def test_a_teacher_with_the_datas_classes(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own head is measured, and the best resolution is in the command; all fits into 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    found = report_of(tmp_path, teacher, "--data", "digits#student", "--images", "200")
    assert not found["new_head"]
    assert found["images"] == 200
    assert found["low"] < found["top1"] < found["high"]
    assert found["top1"] > 70
    assert found["calibrated_nll"] <= found["nll"]
    assert found["input"]["height"] == 32
    assert min(found["resolutions"], key=lambda row: row["nll"])["resolution"] == found["best_resolution"]
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(len(line) for line in lines if not line.startswith("    tutelage")) <= 80
    for name in ("licence", "classes", "mean, std", "top-1", "ECE, NLL", "temperature", "resolution"):
        assert any(line.startswith(name) for line in lines), shown
    assert f"tutelage distill --teacher {teacher} --data 'digits#student'" in shown


def test_a_backbone_without_a_head_is_probed(tmp_path: Path) -> None:
    """A timm checkpoint with num_classes=0, as self-supervised ones are."""
    network = timm.create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), tmp_path / "backbone.safetensors")
    spec = f"test_resnet@{tmp_path / 'backbone.safetensors'}"
    assert load_model(spec).num_classes == 0
    found = report_of(tmp_path, spec, "--data", "digits", "--images", "300", "--resolution", "32")
    assert found["new_head"]
    assert found["classes"] == 10
    assert found["images"] <= 150
    assert found["top1"] > 20
    assert "linear probe" in found["head"]


def test_stored_answers_have_no_resolution(teacher: str, tmp_path: Path) -> None:
    live = load_model(teacher)
    names, logits = answers_of(live, whole(open_source("digits")))
    path = write_csv(tmp_path / "scores.csv", names, live.class_ids or (), logits.numpy())
    stored = report_of(tmp_path, f"predictions:{path}", "--data", "digits", "--images", "200")
    seen = report_of(tmp_path, teacher, "--data", "digits", "--images", "200")
    assert (stored["input"], stored["best_resolution"]) == (None, None)
    assert stored["top1"] == seen["top1"]
    assert stored["ece"] == pytest.approx(seen["ece"], abs=0.01)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["test_resnet@none", "--data", "digits"], "random weights"),
        (["resnet5O", "--data", "digits"], "resnet50"),
        (["predictions:nothing.csv", "--data", "digits"], "no file nothing.csv"),
        (["test_resnet@none", "--data", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_named_in_one_line(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("teacher", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert named in lines[0]
