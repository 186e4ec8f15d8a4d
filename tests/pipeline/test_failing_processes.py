"""Several processes wait for a slow one, and end together with the line of the one that fails.

Collective operations have a few seconds only here, see `tests.helpers.faults`.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import TINY
from tests.helpers import faults
from tests.helpers.killing import ONE_THREAD, Before, Ended, free_port, together, tutelage

from tutelage.core.files import entry, read_jsonl
from tutelage.core.run_dir import Run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = copy.deepcopy(TINY)
    tree["teacher"]["fit"] = "no"
    tree["student"] |= {"dropout": 0.0}
    tree["data"] |= {"limit": 97}
    tree["train"] |= {"batch_size": 16, "epochs": 1, "frozen_batchnorm": True}
    tree |= {"control": False, "selection": {"interpolate": False, "soup": False}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ended(recipe: Path, before: Before | None = None, processes: int = 2) -> list[Ended]:
    root = recipe.parent
    command = ("distill", recipe, "--name", "run", "--runs", root, "--progress", "json")
    return together(*command, log=root / "log", port=free_port(), before=before, processes=processes)


def test_the_others_wait_for_a_slow_first_process(recipe: Path) -> None:
    found = ended(recipe, faults.slow_first)
    assert [one.code for one in found] == [0, 0], found
    run = Run(recipe.parent / "run")
    assert entry(run.versions, "machine", "processes") == 2
    assert run.digests.exists()


@pytest.mark.parametrize(
    ("before", "code", "line"),
    [
        (faults.second_is_refused, 2, "error: photo.jpg: cannot be read by this process"),
        (faults.first_has_no_space, 2, "error: metrics.jsonl: cannot be written (No space left on device)"),
    ],
)
def test_an_error_of_one_process_ends_all_with_its_line(
    before: Before, code: int, line: str, recipe: Path
) -> None:
    for one in ended(recipe, before):
        assert one.code == code, one.output
        assert one.output.rstrip().splitlines()[-1].startswith(line), one.output
        assert "Traceback" not in one.output


def test_torchrun_does_not_stop_the_others_before_they_have_named_the_error(recipe: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "tests.helpers.faults", "second_is_slow_to_say"]
    command += ["distill", str(recipe), "--name", "run", "--runs", str(recipe.parent)]
    environment = os.environ | ONE_THREAD | {"ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 1  # torchrun's own
    assert entry(Run(recipe.parent / "run").versions, "machine", "processes") == 2
    assert found.stderr.count("error: photo.jpg: cannot be read by this process") == 2
    assert "stopped; all results are kept" not in found.stdout


def test_a_fault_of_the_program_is_named_by_all_and_traced_by_one(recipe: Path) -> None:
    first, second = ended(recipe, faults.second_is_broken)
    assert (first.code, second.code) == (1, 1)
    assert "Traceback" in second.output
    assert second.output.rstrip().endswith("ValueError: a fault of the program")
    assert "Traceback" not in first.output
    assert first.output.rstrip().endswith("error: process 1: ValueError: a fault of the program")


def test_what_the_first_process_cannot_make_at_the_end_costs_no_other_part(recipe: Path) -> None:
    first, second = ended(recipe, faults.page_fails)
    run = Run(recipe.parent / "run")
    assert (first.code, second.code) == (1, 1), first.output + second.output
    assert "the page failed (ValueError: a fault of the program)" in first.output
    assert run.diagnosis.exists()
    assert not run.report.exists()


@pytest.mark.slow
def test_four_processes_end_with_the_line_of_one(recipe: Path) -> None:
    for one in ended(recipe, faults.second_is_refused, processes=4):
        assert one.code == 2, one.output
        assert one.output.rstrip().splitlines()[-1] == "error: photo.jpg: cannot be read by this process"


@pytest.mark.parametrize(
    ("processes", "others"), [(2, 1), (1, 2), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_a_run_is_resumed_by_another_number_of_processes(
    processes: int, others: int, recipe: Path, tmp_path: Path
) -> None:
    """It ends as one that was not interrupted, up to the order of sums, also with batches in two parts."""
    whole = tmp_path / "whole"
    assert tutelage("distill", recipe, "--name", "whole", "--runs", tmp_path, log=tmp_path / "log").code == 0
    for one in together(
        "distill", recipe, "train.accumulate=2", "--name", "run", "--runs", tmp_path, "--progress", "json",
        log=tmp_path / "log", port=free_port(), before=faults.stopped_in_training, processes=processes,
    ):  # fmt: skip
        assert one.code == 130, one.output
    again = together("resume", tmp_path / "run", log=tmp_path / "log", port=free_port(), processes=others)
    assert [one.code for one in again] == [0] * others, again
    rows, expected = (list(read_jsonl(Run(path).metrics)) for path in (tmp_path / "run", whole))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-4)
        assert row["val"]["nll"] == pytest.approx(other["val"]["nll"], abs=2e-4)
