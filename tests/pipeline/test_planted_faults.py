"""`tutelage data` on photographs with planted faults: all of them are found, and the list leaves the right ones out."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.helpers.photographs import Planted, plant

from tutelage.cli import main
from tutelage.core.recipe import DataRecipe
from tutelage.data.doctor.checkup import Checkup
from tutelage.data.doctor.finding import Finding
from tutelage.data.splits import make_splits
from tutelage.pipeline.doctor import check_data
from tutelage.pipeline.doctor.labels import INSTALL


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def checkup(planted: Planted) -> Checkup:
    return check_data(DataRecipe(train=planted.train, test=planted.test))


def finding(checkup: Checkup, key: str) -> Finding:
    return next(found for found in checkup.findings if found.key == key)


def names(checkup: Checkup, key: str) -> list[str]:
    return [checkup.images.id(item.number) for item in finding(checkup, key).items]


def test_all_test_pictures_in_training_are_found_also_those_that_were_saved_again(
    checkup: Checkup, planted: Planted
) -> None:
    found = {
        checkup.images.id(item.number): checkup.images.id(group[-1].number)
        for group in finding(checkup, "copies_of_test").groups
        for item in group[:-1]
    }
    assert len(planted.copies) == 20
    assert found == planted.copies
    assert not {"copies_of_val", "copies", "copies_of_two_classes"} & {one.key for one in checkup.findings}


def test_wrong_labels_are_found(checkup: Checkup, planted: Planted) -> None:
    found = names(checkup, "labels")
    assert len(planted.wrong) == 3
    assert {*planted.wrong} <= {*found}
    assert len(found) <= 8
    items = {checkup.images.id(item.number): item for item in finding(checkup, "labels").items}
    assert "labelled flower, looks like temple" in items["flower/temple-05.jpg"].leave_out
    text, _, doubtful = checkup.leave_out()
    assert doubtful >= 3
    assert "\n# flower/temple-05.jpg  # labelled flower" in text


def test_files_and_classes_are_found(checkup: Checkup) -> None:
    assert names(checkup, "unreadable") == ["temple/broken.jpg"]
    assert "truncated" in finding(checkup, "unreadable").items[0].why
    assert finding(checkup, "one_image").classes == ("alone",)


def test_pictures_that_show_little_are_found(checkup: Checkup) -> None:
    for key in ("dark", "plain", "blurred", "tiny"):
        assert f"flower/{key}.png" in names(checkup, key)
    assert names(checkup, "odd_shape") == ["flower/long.png"]


def test_the_gravest_findings_come_first(checkup: Checkup) -> None:
    levels = [found.level for found in checkup.findings]
    assert levels == sorted(levels, key=["problem", "look", "note"].index)


def test_the_command_writes_page_json_and_a_list_that_a_run_takes(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data", planted.train, "--test", planted.test, "--model", "none"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json", "found.json", "--fix", "list.txt"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "problem: Test picture in training too: 20: flower/copy-0.jpg = flower/0.jpg" in printed
    assert "data.exclude=list.txt" in printed
    assert max(len(line) for line in (tmp_path / "list.txt").read_text().splitlines()) < 200
    found = json.loads((tmp_path / "found.json").read_text())
    counts = {one["key"]: one["count"] for one in found["findings"]}
    assert counts["copies_of_test"] == 20
    assert counts["unreadable"] == 1
    assert "labels" not in counts
    page = (tmp_path / "data-report.html").read_text()
    assert page.count("data:image/") > 40
    assert len(page) < 2_000_000  # without Plotly
    splits = make_splits(DataRecipe(train=planted.train, test=planted.test, exclude="list.txt"))
    left = {*splits.train.ids, *splits.val.ids}
    assert not left & {*planted.copies, "temple/broken.jpg"}
    assert {"flower/dark.png", "flower/tiny.png"} <= left
    with pytest.raises(SystemExit) as ended:
        main([*words, "--fix", "list.txt"])
    assert ended.value.code == 2
    assert "--fix list.txt: this file exists" in capsys.readouterr().err


def test_without_cleanlab_one_line_says_how_to_install_it_and_the_rest_is_reported(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setattr("tutelage.pipeline.doctor.labels.find_spec", lambda name: None)
    found = check_data(DataRecipe(train=planted.train, test=planted.test))
    assert f"labels are not checked: {INSTALL}" in found.notes
    assert {"copies_of_test", "unreadable"} <= {one.key for one in found.findings}


def test_a_network_that_cannot_judge_is_named_and_the_rest_is_reported(planted: Planted) -> None:
    found = check_data(DataRecipe(train=planted.train, test=planted.test), model="test_resnet@none")
    assert any("test_resnet@none has random weights" in note for note in found.notes)
    assert "copies_of_test" in {one.key for one in found.findings}


def test_images_without_labels_are_looked_at_too(planted: Planted, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(Path(planted.test).rglob("*.jpg"))):
        shutil.copy(path, tmp_path / f"{number}.jpg")
    shutil.copy(tmp_path / "0.jpg", tmp_path / "again.jpg")
    found = check_data(DataRecipe(train=str(tmp_path)))
    assert found.notes == ("labels are not checked: no image has one",)
    assert [one.key.partition("_")[0] for one in found.findings] == ["copies"]
    assert found.summary() == "21 images (13 train, 4 val, 4 test), no labels"


def test_keys_of_other_parts_of_the_recipe_are_refused(
    planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", planted.train, "train.epochs=3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: train.epochs=3: only keys of data can be given here")
