"""A teacher with labelled images of its own, and a student with few labels: what `data.teacher` is for."""

import copy
import re
import sys
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.helpers.fitted import fit

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.pipeline.quickstart import quickstart_recipe
from tutelage.pipeline.run import begin, distill

OWN = {
    "train": "digits#student",
    "teacher": "digits#teacher",
    "labels_per_class": 2,
    "limit": 200,
    "workers": 0,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tree = copy.deepcopy(TINY)
    tree |= {"name": "own", "data": OWN}
    recipe = parse_recipe(tree)
    run = begin(recipe, tmp_path_factory.mktemp("runs"), "test")
    distill(recipe, run, Silent())
    return run


def test_the_teacher_is_fitted_to_its_own_images(finished: Run) -> None:
    steps = {row["stage"]: row["step"] for row in read_jsonl(finished.metrics) if row["epoch"] == 1}
    parts = read_json(finished.splits)["parts"]
    assert parts["teacher"]["size"] == parts["teacher"]["labelled"] == 200
    assert parts["train"]["labelled"] == 20
    assert steps["teacher-fit"] == 200 // 32


def test_the_page_says_who_saw_which_labels(finished: Run) -> None:
    page = finished.report.read_text(encoding="utf-8")
    unlabelled = read_json(finished.splits)["parts"]["unlabelled"]["size"]
    assert "Student and control learn from the labels of 20 images" in page
    assert f"the student also from {unlabelled} images without labels" in page
    assert "The teacher was fitted to 200 other labelled images." in page
    table = page.partition('<section id="data"')[2].partition("</table>")[0]
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row) for row in table.split("<tr>")[2:]]
    assert [row[:3] for row in rows[:3]] == [
        ["Training", "20", "20"],
        ["Training, unlabelled", f"{unlabelled:,}", "0"],
        ["Teacher’s own", "200", "200"],
    ]
    assert [row[0] for row in rows[3:]] == ["Validation", "Test"]
    words = {row[0]: row[5] for row in rows}
    assert words["Training"] == "student and control"
    assert words["Training, unlabelled"].startswith("nobody")
    assert words["Teacher’s own"] == "the teacher only"


def test_a_teacher_that_knows_the_classes_is_not_fitted(tmp_path: Path) -> None:
    fit("test_resnet", whole(open_source("digits")), tmp_path / "teacher.safetensors", epochs=6)
    tree = copy.deepcopy(TINY)
    tree["teacher"] |= {"model": f"test_resnet@{tmp_path / 'teacher.safetensors'}", "fit": "auto"}
    recipe = parse_recipe(tree | {"data": OWN, "name": "known"})
    run = begin(recipe, tmp_path, "test")
    with pytest.raises(TutelageError, match="has the classes of the data already"):
        distill(recipe, run, Silent())


def test_the_quickstart_exports_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quickstart_recipe().export.enabled
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert not quickstart_recipe().export.enabled


def test_no_image_of_the_quickstart_is_the_teachers_and_the_students() -> None:
    data = quickstart_recipe().data
    teacher, student = (set(open_source(str(spec)).ids) for spec in (data.teacher, data.train))
    assert len(teacher) + len(student) == len(teacher | student) == 1797


def test_a_finished_quickstart_is_shown_again(
    finished: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("a finished run is not begun again")

    monkeypatch.setattr("tutelage.pipeline.run.distill", no_work)
    before = finished.comparison.read_bytes()
    read: list[str] = []
    plain = Path.read_text

    def noted(path: Path, *arguments: object, **named: object) -> str:
        read.append(path.name)
        return plain(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", noted)
    with pytest.raises(SystemExit, match="0"):
        main(["quickstart", "--name", finished.path.name, "--runs", str(finished.path.parent)])
    assert read.count("comparison.json") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.index("the results are in") < shown.index(
        "Teacher helped?"
    )  # what one came for is at the end
    assert "Teacher helped?" in shown
    assert "`tutelage quickstart --name another` makes a new one" in shown
    assert finished.comparison.read_bytes() == before
