"""How long a run still takes, and in which order its stages are."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.report.small_run import make_run

from tutelage.report.run_records import RunRecords, read_run_records
from tutelage.report.sections.verdict import verdict_section
from tutelage.report.time_left import time_left

PLANNED = {"preflight": 1.0, "training": 160.0, "selection": 30.0, "test": 10.0}
SPEED = {
    "seconds": PLANNED,
    "val": {"n": 200},
    "precision": {"images_per_s": {"student_inference": {"fp32": 100.0}}},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """A run that was killed before its first epoch of 8."""
    run = make_run(
        tmp_path_factory.mktemp("runs"), stop="control", overrides={"data": {"train": "digits", "limit": 150}}
    )
    return replace(read_run_records(run), metrics=[])


def epochs(stage: str, done: int, seconds: float, of: int = 8) -> Iterator[dict[str, Any]]:
    for epoch in range(1, done + 1):
        yield {"stage": stage, "epoch": epoch, "epochs": of, "seconds": seconds, "val": {"top1": 50.0}}


@pytest.mark.parametrize(
    ("metrics", "seconds"),
    [
        ([], 160 + 30 + 10),  # as planned: 10 s an epoch
        # the control takes 20 s an epoch, and val and the EMA's val 4 s; the student is as planned
        ([*epochs("control", 6, 20.0)], 2 * 24 + 80 + 40),
        ([*epochs("control", 8, 20.0), *epochs("distill", 7, 30.0)], 34 + 40),
    ],
)
def test_epochs_are_as_long_as_those_before(begun: RunRecords, metrics: list[Any], seconds: float) -> None:
    preflight = (begun.preflight or {}) | SPEED
    found = time_left(replace(begun, metrics=metrics, preflight=preflight))
    minutes, rest = divmod(round(seconds), 60)
    assert found.startswith(f"About {minutes} min {rest:02d} s of computing are left (")


def test_what_is_done_is_not_left(begun: RunRecords) -> None:
    preflight = (begun.preflight or {}) | SPEED
    chosen = replace(begun, preflight=preflight, candidates={"candidates": []})
    assert time_left(chosen).startswith("About 10 s of computing")
    assert time_left(replace(chosen, comparison={})) == ""


def test_before_the_preflight_only_the_fit_is_known(begun: RunRecords) -> None:
    fitting = replace(begun, preflight=None, metrics=[*epochs("teacher-fit", 2, 3.0, of=12)])
    assert time_left(fitting).startswith("About 30 s are left of the fit of the teacher.")
    assert time_left(replace(begun, preflight=None)) == ""


def test_runs_of_older_versions_have_no_estimate(begun: RunRecords) -> None:
    assert time_left(begun) == ""


def test_the_page_shows_it(begun: RunRecords) -> None:
    records = replace(begun, preflight=(begun.preflight or {}) | SPEED)
    assert time_left(records) in str(verdict_section(records).html)


@pytest.mark.parametrize(
    ("done", "preflight", "state"), [(2, False, "ahead"), (12, False, "ahead"), (12, True, "done")]
)
def test_the_preflight_follows_the_fit_of_the_teacher(
    begun: RunRecords, done: int, preflight: bool, state: str
) -> None:
    records = replace(
        begun,
        metrics=[*epochs("teacher-fit", done, 3.0, of=12)],
        preflight=begun.preflight if preflight else None,
    )
    first, second, *_ = records.stages
    assert (first.name, first.state) == ("fit of the teacher", "going" if done < 12 else "done")
    assert (second.name, second.state) == ("pre-flight", state)
