"""The run directory: files whole or not at all, one process at a time, names that are no paths."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.errors import TutelageError
from tutelage.core.files import append_jsonl, entry, link_file, read_json, read_jsonl, write_bytes, write_json
from tutelage.core.run_dir import Run


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "..", ".", "", ".hidden", "a\\b", "a\nb", "x" * 200]
)
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "runs"
    with pytest.raises(TutelageError, match="run name"):
        Run.create(root, name)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_exists_is_not_written_over(tmp_path: Path) -> None:
    write_json(Run.create(tmp_path, "one").versions, {})
    with pytest.raises(TutelageError, match="this run exists; continue it with `tutelage resume"):
        Run.create(tmp_path, "one")


def test_a_run_that_was_killed_before_it_was_begun_is_begun_anew(tmp_path: Path) -> None:
    left = tmp_path / "one"
    left.mkdir()
    (left / "recipe.yaml").write_text("{}")
    (left / ".versions.json.12.tmp").write_text("{")
    assert Run.create(tmp_path, "one").path == left
    (left / "versions.json").write_text("{}")
    with pytest.raises(TutelageError, match="this run exists"):
        Run.create(tmp_path, "one")


def test_a_place_that_takes_no_files_is_named() -> None:
    for root in (Path("/proc"), Path("/dev/null/runs")):  # read-only even to root
        with pytest.raises(TutelageError, match="cannot be created"):
            Run.create(root, "one")
        with pytest.raises(TutelageError, match="cannot be written"):
            write_bytes(root / "x" / "file", b"")
        with pytest.raises(TutelageError, match="cannot be written"):
            append_jsonl(root / "x" / "file", {})


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TutelageError, match=r"file\.json: cannot be written \(No space left on device\)"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": value})


def _hold(path: Path, held: Any, done: Any) -> None:
    with Run(path).held():
        held.set()
        done.wait(60)


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "one")
    fork = multiprocessing.get_context("fork")
    held, done = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(run.path, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(TutelageError, match="another process works on this run"), run.held():
        pass
    other.kill()  # a killed process holds nothing
    other.join()
    with run.held():
        pass


def _fork_and_die(path: Path, child: Any) -> None:
    """Hold a run, fork a process as a data loader does, and be killed while it lives on."""
    with Run(path).held():
        if not (pid := os.fork()):
            time.sleep(60)
            os._exit(0)
        child.send(pid)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_is_released_with_its_process_while_a_forked_process_lives_on(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "one")
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    other = fork.Process(target=_fork_and_die, args=(run.path, sender))
    other.start()
    left = receiver.recv()
    other.join()
    try:
        assert other.exitcode == -signal.SIGKILL
        os.kill(left, 0)  # it is alive
        with run.held():
            pass
    finally:
        os.kill(left, signal.SIGKILL)


def test_a_forked_process_that_ends_does_not_release_the_lock(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "one")
    fork = multiprocessing.get_context("fork")
    with run.held():
        worker = fork.Process(target=int)
        worker.start()
        worker.join()
        held, done = fork.Event(), fork.Event()
        other = fork.Process(target=_hold, args=(run.path, held, done))
        other.start()
        other.join()
        assert not held.is_set()
        assert other.exitcode == 1


def test_a_link_is_made_in_one_step_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "sub" / "target"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    for _ in range(2):  # the second time both are the same file, which `os.replace` leaves as it is
        link_file(source, target)
        assert target.samefile(source)
        assert list(target.parent.iterdir()) == [target]
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    target.unlink()
    link_file(source, target)
    assert not target.samefile(source)
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "one")
    run.checkpoints.mkdir()
    for folder in (run.path, run.checkpoints):
        (folder / ".student.safetensors.123.tmp").write_bytes(b"half")
    with run.held():
        assert not list(run.path.rglob("*.tmp"))


def test_a_line_cut_by_a_crash_is_passed_over_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    assert list(read_jsonl(path)) == [{"a": 1}]
    path.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(TutelageError, match="line 1 is damaged"):
        list(read_jsonl(path))


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "\x00", '{"a": {"b": 1}'])
def test_damaged_json_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(TutelageError, match=r"x\.json: damaged"):
        read_json(path)


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"a": {"c": 2}}, [], None])
def test_an_entry_that_is_missing_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TutelageError, match=r"x\.json: damaged \(no a\.b\)"):
        entry(path, "a", "b")
