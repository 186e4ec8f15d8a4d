"""What follows the training may fail: the student stays, the rest is made, and `resume` makes what is missing."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import TINY

from tutelage.cli import main
from tutelage.core.begun import record_begin, record_edits, where_it_began
from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.pipeline.verify import verify


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def distil(root: Path, name: str) -> int:
    tree = copy.deepcopy(TINY) | {"control": False}
    tree["data"] |= {"limit": 120}
    tree["train"] |= {"epochs": 1}
    tree["teacher"]["fit"] = "no"
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return command("distill", path, "--name", name, "--runs", root, "--progress", "none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("after")
    assert distil(root, "run") == 0
    return Run(root / "run")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    shutil.copytree(finished.path, tmp_path / "run")
    return Run(tmp_path / "run")


def fails(*_: object, **__: object) -> Any:
    raise ValueError("out of luck")


@pytest.mark.parametrize(
    ("station", "name", "missing"),
    [
        ("measure", "the evaluation on test", "comparison"),
        ("explain", "the diagnosis", "diagnosis"),
        ("write_digests", "the digests", "digests"),
        ("write_report", "the page", "report"),
    ],
)
def test_each_station_may_fail_alone_and_resume_makes_what_is_missing(
    station: str,
    name: str,
    missing: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = run.student.read_bytes()
    for path in (run.comparison, run.diagnosis, run.report):
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(f"tutelage.pipeline.run.{station}", fails)
        assert command("resume", run.path, "--progress", "none") == 1
    err = capsys.readouterr().err
    assert f"{name} failed (ValueError: out of luck)" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert run.student.read_bytes() == student
    assert not getattr(run, missing).exists()
    assert run.digests.exists() == (station == "write_report")  # the list names files that are whole
    others = {"measure": ["report"], "explain": ["comparison", "report"]}.get(
        station, ["comparison", "diagnosis"]
    )
    assert all(getattr(run, other).exists() for other in others)
    assert command("resume", run.path, "--progress", "none") == 0
    assert verify(run).ok
    assert run.report.exists()


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_that_a_library_turns_into_its_own_error_is_no_failed_station(
    swallowed: bool, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explain(_: Run) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            if not swallowed:
                raise RuntimeError("converter: KeyboardInterrupt") from None

    run.diagnosis.unlink()
    monkeypatch.setattr("tutelage.pipeline.run.explain", explain)
    assert command("resume", run.path, "--progress", "none") == 130
    assert "failed" not in capsys.readouterr().err


def test_a_missing_extra_after_the_training_costs_the_files_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["export"]["enabled"] = True
    run.recipe.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("tutelage.pipeline.run.deploy", fails)
    assert command("resume", run.path, "--progress", "none") == 1
    assert "the deployed files failed" in capsys.readouterr().err
    assert run.report.exists()


def test_a_finished_run_stays_finished_when_a_resume_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.pipeline.run.prepare", lambda *_: fails_with_a_line())
    assert command("resume", run.path, "--progress", "none") == 2
    assert verify(run).ok


def fails_with_a_line() -> None:
    raise TutelageError("the images are gone")


def test_a_new_run_that_is_refused_leaves_no_directory_but_one_with_work_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tutelage.pipeline.run.prepare", lambda *_: fails_with_a_line())
        assert distil(tmp_path, "early") == 2
    assert not (tmp_path / "early").exists()
    monkeypatch.setattr("tutelage.pipeline.run.preflight", lambda *_: fails_with_a_line())
    assert distil(tmp_path, "late") == 2
    assert Run(tmp_path / "late").start.exists()


# --- a recipe that is edited before a resume


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.temperature", 9.0),
        ("loss.options", {"beta": 1.0}),
        ("train.batch_size", 4),
        ("train.epochs", 3),
        ("teacher.model", "test_vit@none"),
        ("teacher.fit", "probe"),
        ("teacher.fit", {"epochs": 3}),
        ("student.head_fit", {"epochs": 3}),
        ("data.cache", False),
        ("view.flip", 0.5),
        ("data.limit", 99),
        ("selection.soup", False),
    ],
)
def test_an_edit_that_would_mix_two_recipes_is_refused_by_its_key(
    key: str, value: object, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(run.recipe.read_text())
    block, _, last = key.partition(".")
    tree[block][last] = value
    run.recipe.write_text(yaml.safe_dump(tree))
    assert command("resume", run.path, "--progress", "none") == 2
    line = capsys.readouterr().err
    assert key in line
    assert "when the run began and is now" in line
    assert run.digests.exists()


def test_an_edit_that_changes_no_figure_is_taken_and_recorded(tmp_path: Path) -> None:
    run, recipe = Run.create(tmp_path, "run"), parse_recipe({"data": {"workers": 0}})
    record_begin(run, recipe)
    record_edits(run, recipe)
    edited = parse_recipe({"data": {"workers": 2}, "export": {"enabled": True}, "track": ["tensorboard"]})
    record_edits(run, edited)
    edits = read_json(run.begun)["edits"]
    assert {one["key"]: (one["from"], one["to"]) for one in edits} == {
        "data.workers": (0, 2),
        "export.enabled": (False, True),
        "track": ([], ["tensorboard"]),
    }
    record_edits(run, edited)
    assert len(read_json(run.begun)["edits"]) == 3


def test_every_key_of_a_recipe_is_either_free_or_refused(tmp_path: Path) -> None:
    from tutelage.core.begun import FREE
    from tutelage.core.recipe_tree import flat

    keys = flat(Recipe().model_dump(mode="json"))
    assert all(any(key == free or key.startswith(f"{free}.") for key in keys) for free in FREE)


# --- relative paths


def test_a_run_is_resumed_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    run = Run.create(Path("runs"), "run")
    recipe = parse_recipe({"data": {"train": "folder:photos"}})
    run.recipe.write_text("data: {train: 'folder:photos'}\n")
    record_begin(run, recipe)
    monkeypatch.chdir(tmp_path / "away")
    with where_it_began(Run(Path("../home/runs/run"))) as found:
        assert Path.cwd() == tmp_path / "home"
        assert load_recipe(found.recipe).data.train == "folder:photos"
    assert Path.cwd() == tmp_path / "away"
    (tmp_path / "away" / "photos").mkdir()  # what is here too is meant
    with where_it_began(Run(Path("../home/runs/run"))):
        assert Path.cwd() == tmp_path / "away"
