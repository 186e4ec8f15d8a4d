"""`tutelage verify`: every difference is named, and nothing outside the run directory is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.files import write_text
from tutelage.core.run_dir import Run, write_digests
from tutelage.pipeline.verify import verify


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path, "one")
    for path in (
        made.recipe,
        made.student,
        made.checkpoints / "distill.safetensors",
        made.cache / "pixels.bin",
    ):
        write_text(path, path.name)
    write_digests(made)
    return made


def exit_code(run: Run) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run.path)])
    return ended.value.code


def test_an_untouched_run_is_intact(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(run) == 0
    assert capsys.readouterr().out == "as the run left it: 3 files intact, 0 changed, 0 missing, 0 new\n"


def test_each_difference_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.student.write_text("student.safetensorz")  # as long as it was
    (run.checkpoints / "distill.safetensors").unlink()
    (run.path / "notes.txt").write_text("new")
    assert exit_code(run) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "changed: 'student.safetensors'",
        "missing: 'checkpoints/distill.safetensors'",
        "new: 'notes.txt'",
    ]
    assert lines[3].startswith("NOT as the run left it: 1 files intact")


def test_a_new_file_and_a_changed_cache_are_no_fault(run: Run) -> None:
    run.report.write_text("new")
    (run.cache / "pixels.bin").write_text("other")
    assert verify(run).ok


def test_a_file_that_became_a_link_is_not_followed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("student.safetensors")
    run.student.unlink()
    run.student.symlink_to(tmp_path / "elsewhere")
    assert verify(run).missing == ("student.safetensors",)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\0b"])
def test_a_list_that_leads_outside_is_refused(run: Run, name: str) -> None:
    run.digests.write_text(json.dumps({name: {"bytes": 1, "sha256": ""}}))
    assert exit_code(run) == 2
    with pytest.raises(TutelageError, match="outside the run directory"):
        verify(run)


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_damaged_list_is_bad_input(run: Run, content: str) -> None:
    run.digests.write_text(content)
    assert exit_code(run) == 2


def test_a_run_that_has_not_ended_is_bad_input(run: Run, tmp_path: Path) -> None:
    run.digests.unlink()
    assert exit_code(run) == 2
    assert exit_code(Run(tmp_path)) == 2
