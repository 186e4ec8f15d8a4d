"""The headline of a page is green only where the diagnosis has no reason against it."""

import json
import shutil
from pathlib import Path

import pytest
from tests.report.small_run import random_start

from tutelage.core.files import read_json, read_jsonl, write_json
from tutelage.core.run_dir import Run
from tutelage.report.build import write_report
from tutelage.report.headline import headline
from tutelage.report.run_records import read_run_records

REASON = "the teacher is below the labels-only control"


@pytest.fixture
def better(finished: Run, tmp_path: Path) -> Run:
    run = Run(tmp_path / "better")
    shutil.copytree(finished.path, run.path)
    comparison = read_json(run.comparison)
    comparison["verdict"]["outcome"] = "better"
    write_json(run.comparison, comparison)
    return run


def doubt(run: Run) -> None:
    diagnosis = read_json(run.diagnosis)
    diagnosis["findings"][0]["reservation"] = REASON
    write_json(run.diagnosis, diagnosis)


def test_a_doubted_gain_is_not_green_and_says_why(better: Run) -> None:
    write_report(better)
    assert '<span class="better">Better than its start</span>' in better.report.read_text(encoding="utf-8")
    doubt(better)
    write_report(better)
    assert f'<span class="same">Better than its start, but {REASON}</span>' in better.report.read_text(
        encoding="utf-8"
    )


def test_a_loss_stays_a_loss(better: Run) -> None:
    comparison = read_json(better.comparison)
    comparison["verdict"]["outcome"] = "worse"
    write_json(better.comparison, comparison)
    doubt(better)
    (told,) = headline(read_run_records(better))
    assert (told.css_class, told.words) == ("worse", "worse than its start")


def test_the_reason_is_told_once(better: Run, tmp_path: Path) -> None:
    run = random_start(better, tmp_path / "scratch", "control")
    comparison = read_json(run.comparison)
    for pair in comparison["verdict"]["pairs"]:
        pair |= {"difference": 2.0, "low": 1.0, "high": 3.0, "mcnemar_p": 0.001}
    comparison["verdict"]["outcome"] = "better"
    write_json(run.comparison, comparison)
    doubt(run)
    told = headline(read_run_records(run))
    assert [one.css_class for one in told] == ["same"] * len(told)
    assert [REASON in one.words for one in told] == [True] + [False] * (len(told) - 1)


def test_a_training_that_stopped_early_is_done_where_a_later_stage_has_begun(better: Run) -> None:
    rows = [row | {"epochs": row["epochs"] + 5} for row in read_jsonl(better.metrics)]
    better.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    records = read_run_records(better)
    assert records.finished
    better.candidates.unlink()
    for later in (better.comparison, better.diagnosis):
        later.unlink()
    records = read_run_records(better)
    assert [stage.state for stage in records.stages][1:3] == ["done", "going"]  # control, and distillation
