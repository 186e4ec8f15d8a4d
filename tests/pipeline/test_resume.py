"""A run stopped anywhere goes on, and ends as the run that was never stopped: bit by bit."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.conftest import TINY
from tests.helpers.killing import ONE_THREAD, STATIONS, Ended, Moment, command, started, tutelage

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.run_dir import Run

KILLS, CHAINS = 20, 3
TIMED = {"latency_ms", "latency_p10", "latency_p90", "images_per_s", "seconds", "conditions"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stations, every kind of state, and a checkpoint nearly every step."""
    tree = copy.deepcopy(TINY)
    tree["teacher"]["fit"]["epochs"] = 1
    tree["student"] |= {"head_fit": {"epochs": 1}, "dropout": 0.2}
    tree["data"] |= {"limit": 96}
    tree["view"] |= {"mixup": 0.2, "cutmix": 0.2, "colour": 0.2}
    tree["train"] |= {
        "batch_size": 16,
        "ema": 0.9,
        "l2_sp": 0.01,
        "checkpoint_minutes": 0.0005,
        "warmup_epochs": 0.5,
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, int]]:
    """What a run that nobody stops ends as, and the calls of each station."""
    root = tmp_path_factory.mktemp("unbroken")
    ended = begin(recipe, root, count=True)
    assert ended.code == 0, ended.output
    assert tuple(ended.calls) == STATIONS
    return outcome(Run(root / "run")), ended.calls


def begin(recipe: Path, root: Path, moment: Moment | None = None, count: bool = False) -> Ended:
    words = ("distill", recipe, "--name", "run", "--runs", root, "--progress", "json")
    return tutelage(*words, log=root / "log", moment=moment, count=count)


def go_on(root: Path, moment: Moment | None = None, file_bytes: int | None = None) -> Ended:
    return tutelage(
        "resume", root / "run", "--progress", "json", log=root / "log", moment=moment, file_bytes=file_bytes
    )


def start_or_go_on(recipe: Path, root: Path, moment: Moment) -> Ended:
    return go_on(root, moment) if (root / "run" / "versions.json").exists() else begin(recipe, root, moment)


def outcome(run: Run) -> dict[str, Any]:
    """All that a run ends with, but for what a clock measured."""
    weights = {p.name: p.read_bytes() for p in (run.teacher, run.start, run.control, run.student)}
    with np.load(run.predictions) as arrays:
        predictions = {name: (arrays[name].dtype.str, arrays[name].tobytes()) for name in arrays.files}
    return {
        **weights,
        "candidates": run.candidates.read_text(),
        "comparison": untimed(read_json(run.comparison)),
        "metrics": untimed(list(read_jsonl(run.metrics))),
        "predictions": predictions,
    }


def untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key not in TIMED}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def random_moments(calls: dict[str, int]) -> list[list[Moment]]:
    """20 of them in 3 runs, at least two in every station."""
    chance = random.Random(20)
    stations = [*STATIONS, *STATIONS]
    stations += chance.choices(STATIONS, k=KILLS - len(stations))
    chance.shuffle(stations)
    chains = [sorted(stations[i::CHAINS], key=STATIONS.index) for i in range(CHAINS)]
    return [[Moment(s, chance.randint(1, calls[s])) for s in chain] for chain in chains]


def test_twenty_kills_at_random_moments_change_nothing(
    recipe: Path, unbroken: tuple[dict[str, Any], dict[str, int]], tmp_path: Path
) -> None:
    expected, calls = unbroken
    for number, chain in enumerate(random_moments(calls)):
        root = tmp_path / str(number)
        root.mkdir()
        for moment in chain:
            ended = start_or_go_on(recipe, root, moment)
            if ended.code == 0:  # a resumed run had fewer calls left than that
                moment = Moment("measure", moment.calls % calls["measure"] + 1)
                ended = go_on(root, moment)
            assert ended.code == -signal.SIGKILL, ended.output
            print(
                f"run {number}: killed in {moment.station}, at call {moment.calls} of {calls[moment.station]}"
            )
        ended = go_on(root)
        assert ended.code == 0, ended.output
        assert differing(expected, outcome(Run(root / "run"))) == []
        assert not list(root.rglob("*.tmp"))


def test_a_polite_kill_is_answered_in_every_station(
    recipe: Path, unbroken: tuple[dict[str, Any], dict[str, int]], tmp_path: Path
) -> None:
    expected, calls = unbroken
    for station in ("fit_teachers", "preflight", "train_student", "measure"):
        moment = Moment(station, calls[station] // 2, signal.SIGTERM)
        ended = start_or_go_on(recipe, tmp_path, moment)
        assert ended.code == 130, (station, ended.output)
        assert f"tutelage resume {tmp_path / 'run'}" in ended.output
        assert "Traceback" not in ended.output
    assert go_on(tmp_path).code == 0
    assert differing(expected, outcome(Run(tmp_path / "run"))) == []


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    recipe: Path, unbroken: tuple[dict[str, Any], dict[str, int]], tmp_path: Path
) -> None:
    expected, calls = unbroken
    assert (
        begin(recipe, tmp_path, Moment("train_control", calls["train_control"] // 2)).code == -signal.SIGKILL
    )
    ended = go_on(tmp_path, file_bytes=100_000)
    assert ended.code == 2
    assert ended.output.splitlines()[-1].startswith("error: ")
    assert "cannot be written (File too large); free some space or change its permissions" in ended.output
    assert "Traceback" not in ended.output
    assert go_on(tmp_path).code == 0
    assert differing(expected, outcome(Run(tmp_path / "run"))) == []


def test_a_process_killed_from_outside_goes_on_from_the_command_line(
    recipe: Path, unbroken: tuple[dict[str, Any], dict[str, int]], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "tutelage", "distill", recipe, "--name", "run", "--runs", tmp_path]
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | ONE_THREAD}
    process = subprocess.Popen(words, **quietly)
    run = Run(tmp_path / "run")
    deadline = time.monotonic() + 300
    while not (run.checkpoints / "control.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    ended = go_on(tmp_path)
    assert ended.code == 0, ended.output
    assert differing(unbroken[0], outcome(run)) == []


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def halted_workers(pid: int, lock: Path) -> list[int]:
    """Halt a process, so that it ends none of its loader processes, and then these.

    Returns:
        Those that are halted now; none where one still has `lock` open, because it has only just been forked.
    """
    os.kill(pid, signal.SIGSTOP)
    while state_of_process(pid) not in {"T", "Z"}:
        time.sleep(0.01)
    children = children_of(pid)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    time.sleep(0.1)
    halted = [child for child in children if state_of_process(child) == "T"]
    return [] if any(has_open(child, lock) for child in halted) else halted


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has this file open."""
    return any(os.path.realpath(link) == os.path.realpath(path) for link in Path(f"/proc/{pid}/fd").iterdir())


def state_of_process(pid: int) -> str:
    """``T`` halted, ``Z`` ended and not yet waited for, and so on; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_a_run_whose_loader_processes_outlive_it_can_be_resumed_at_once(recipe: Path, tmp_path: Path) -> None:
    """They are forked and see some seconds later that their parent is gone; until then they held its lock."""
    quick = ["data.workers=2", "teacher.fit=no", "control=false", "train.epochs=1"]
    words = ["distill", recipe, *quick, "--name", "run", "--runs", tmp_path]
    begun = started(command(*words), log=tmp_path / "log")
    run = Run(tmp_path / "run")
    deadline = time.monotonic() + 300
    workers: list[int] = []
    while not (workers and run.lock.exists()):
        assert time.monotonic() < deadline
        assert begun.is_alive()
        for pid in (*children_of(begun.pid), begun.pid):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)  # so that the process comes on between two looks
        workers = halted_workers(begun.pid, run.lock)
    begun.kill()
    begun.join()
    assert begun.exitcode == -signal.SIGKILL
    try:
        again = go_on(tmp_path)
        assert [state_of_process(pid) for pid in workers] == ["T"] * len(workers)  # they did live on
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    assert again.code == 0, again.output
