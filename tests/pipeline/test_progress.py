"""What a run shows while it works: no stage of any length is silent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.helpers.real_runs import quick

from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.distillation.selection import Work, count
from tutelage.pipeline.console import STAGE_WORDS
from tutelage.pipeline.run import begin, distill


@dataclass
class Shown(Silent):
    """Remembers the stages, each with the steps that were announced and counted."""

    stages: list[list] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    open: bool = False

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, stage: str, steps: int) -> None:
        assert not self.open, f"{stage} begins within {self.stages[-1][0]}"
        self.open = True
        self.stages.append([stage, steps, 0])

    def step(self, losses: dict[str, float], images: int) -> None:
        if self.open:
            self.stages[-1][2] += 1

    def end(self) -> None:
        assert self.open
        self.open = False


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            "loss": {"temperature": "auto"},
            "preflight": {"allow_weak_teacher": True, "probe_resolutions": True},
        },
        {"loss": {"two_heads": True, "label_weight": 0.5}, "control": False},
    ],
    ids=["plain", "with all probes", "two heads"],
)
def test_preflight_and_candidates_count_their_steps(tiny: dict, tmp_path: Path, change: dict) -> None:
    shown = Shown()
    tiny["teacher"]["fit"] = "no"
    tiny["train"]["epochs"] = 1
    recipe = parse_recipe(tiny | {"name": "run"} | change)
    with quick():
        distill(recipe, begin(recipe, tmp_path, "test"), shown)
    assert not shown.open
    names = [name for name, _, _ in shown.stages if name != "images"]
    control = [] if change.get("control") is False else ["control", "selection"]
    probes = ["resolutions"] * 2 if "preflight" in change else []
    last = ["resolutions"] if probes else []
    assert names == [*probes, "preflight", *control, "distill", "selection", *last, "evaluation"]
    assert set(names) <= set(STAGE_WORDS)
    for name, announced, counted in shown.stages:
        assert counted > 0, name
        if name == "selection":  # of so many candidates at most; copies of one another are evaluated once
            assert announced / 2 < counted <= announced, (name, announced, counted)
        elif name != "resolutions":  # lower ones may follow, and those that do not work are left out
            assert counted == announced, (name, announced, counted)
    (line,) = [line for line in shown.lines if "minutes" in line]
    assert re.search(r"\(preflight \d+\.\d, training \d+\.\d, selection \d+\.\d, test \d+\.\d\)", line)


def test_a_resumed_preflight_counts_what_it_does(tiny: dict, tmp_path: Path) -> None:
    tiny["teacher"]["fit"] = "no"
    tiny |= {"name": "run", "control": False, "train": {**tiny["train"], "epochs": 1}}
    recipe = parse_recipe(tiny)
    run = begin(recipe, tmp_path, "test")
    with quick():
        distill(recipe, run, Silent())
        run.student.unlink()
        again = Shown()
        distill(recipe, run, again)
    (stage,) = [stage for stage in again.stages if stage[0] == "preflight"]
    assert stage[1] == stage[2] > 0


@pytest.mark.parametrize(
    ("wish", "batchnorm", "expected"),
    [
        ({"interpolate": False, "soup": False}, False, Work(3, 0)),
        ({"interpolate": False, "soup": False}, True, Work(6, 1, 2)),
        ({"interpolate": True, "soup": False}, False, Work(11, 0)),
        ({"interpolate": True, "soup": True}, True, Work(26, 1, 12)),
    ],
)
def test_how_many_candidates_there_are_at_most(wish: dict, batchnorm: bool, expected: Work) -> None:
    """Of two states: themselves, three points between the start and each, two beside the best, and a soup for each."""
    assert count(2, parse_recipe({"selection": wish}).selection, batchnorm) == expected


def test_each_way_to_report_shows_a_stage_without_epochs(tmp_path: Path) -> None:
    program = """
from tutelage.core.progress import shown
from tutelage.pipeline.console import open_progress

for kind in ("json", "none", "plain", "rich"):
    progress = open_progress(kind)
    with shown(progress, "selection", 3):
        progress.step({}, 16)
        progress.step({}, 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second, *_ = done.stdout.splitlines()
    assert json.loads(first) == {"event": "stage", "stage": "selection", "steps": 3}
    assert second == "evaluating the candidates on val"
    assert done.stderr == ""
