"""Each command in the documentation is accepted: its options, its recipe's keys, and its data.

A command runs in a folder that has what a reader would have (photographs, a finished run, a recipe of one's own), up to
the place where hours of work would begin. Commands that take seconds run to their end. The whole way of the others is
tested in `test_docs_in_full.py`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torchvision
from tests.helpers.command_line import call
from tests.helpers.docs_commands import (
    COMMANDS,
    ELSEWHERE,
    LONG,
    commands,
    is_long,
    make_folder,
    make_stock,
    prepared,
    replaced,
)
from tests.test_docs import PYTHON, ROOT

from tutelage.deploy.manifest import Manifest
from tutelage.models.kinds import MODULES


class WorkBeginsError(Exception):
    """The work of a command would begin here."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all working directories share."""
    place = tmp_path_factory.mktemp("stock")
    make_stock(place)
    return place


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own for each command."""
    make_folder(tmp_path, stock)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(words: list[str]) -> list[str]:
    """The models that a command names."""
    named = [words[k + 1] for k, word in enumerate(words[:-1]) if word in {"--teacher", "--student"}]
    if words[0] == "compare":
        named += words[1:3]
    return [name.partition("@")[0] for name in named if not name.startswith("-")]


def is_model(name: str) -> bool:
    """Whether timm or torchvision knows a name; of other kinds, whether there is such a kind."""
    kind, colon, where = name.partition(":")
    if kind == "torchvision":
        return where in torchvision.models.list_models(module=torchvision.models)
    return kind in MODULES if colon else timm.is_model(name)


def accept(words: list[str]) -> tuple[int, bool]:
    """Run a command to its end, or to where its work begins; return its exit code, and whether it came so far."""
    target = LONG.get(" ".join(words[:2]), LONG.get(words[0]))
    if words[0] == "compare" and "--deploy" in words:
        target = "tutelage.deploy.compare.compare_deployed"
    with patch("tutelage.report.server.Server.serve_forever"), patch("tutelage.deploy.serve.run"):
        if target is None:
            return call(*words), False
        try:
            with patch(target, side_effect=WorkBeginsError):
                return call(*words), False
        except WorkBeginsError:
            return 0, True


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_is_accepted(
    command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = prepared(command)
    assert [name for name in models(words) if not is_model(name)] == []
    code, reached = accept(words)
    assert code == 0, capsys.readouterr().err
    assert reached == is_long(words)


@pytest.mark.parametrize(
    "command", ["distill my.yaml train.epoch=3", "distill --data nowhere", "report nowhere", "losses --all"]
)
def test_a_wrong_command_would_be_seen(command: str, place: Path) -> None:
    assert accept(prepared(replaced(command.split()))) == (2, False)


def test_commands_are_found_and_those_left_out_are_tested_elsewhere() -> None:
    assert len(COMMANDS) > 50
    assert {("quickstart", "--seeds", "3"), ("study", "recipes/digits-study.yaml")} <= set(COMMANDS)
    assert ELSEWHERE.keys() <= set(map(" ".join, commands()))
    for command, test in ELSEWHERE.items():
        assert command.split()[2].partition(":")[0] in (ROOT / test).read_text(encoding="utf-8")


def test_the_program_that_classifies_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cascade, block = PYTHON.findall((ROOT / "docs/deploy.md").read_text(encoding="utf-8"))
    shutil.copytree("runs/done", "runs/pets")
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 6 + 1  # a picture, a folder, an array
    shutil.copytree("runs/done/deploy", "teacher-deploy")
    replace(Manifest.read(Path("teacher-deploy")), cascade={"threshold": 1.0}).write(Path("runs/pets/deploy"))
    exec(cascade, names)
    assert [line.endswith("from the teacher") for line in capsys.readouterr().out.splitlines()] == [True] * 6
