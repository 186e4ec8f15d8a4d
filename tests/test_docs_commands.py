"""Each command in the documentation is accepted: its options, its recipe's keys, and its data.

A command runs in a folder that has what a reader would have (photographs, a finished run, a recipe of one's own), up to
the place where hours of work would begin. Commands that take seconds run to their end.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torchvision
import yaml
from PIL import Image
from tests.conftest import TINY
from tests.test_docs import PAGES, PYTHON, ROOT, code

from tutelage.cli import main
from tutelage.models.kinds import MODULES

RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
COMMAND = re.compile(r"(?<!from )(?<!import )\btutelage +(?=[a-z])")
ALONE = {
    "quickstart",
    "losses",
    "models",
    "recipe",
}  # without a word behind it, any other command is only mentioned
PLACEHOLDERS = {
    "RUN": "runs/done", "RUN...": "runs/done", "DIR": "runs/done", "IMAGE...": "cat.jpg", "PHOTO.jpg": "cat.jpg",
    "NAME@WEIGHTS": "test_resnet@none", "NAME": "test_resnet@none", "BIG": "test_resnet@none",
    "SMALL": "test_efficientnet@none", "STUDY.yaml": "recipes/digits-study.yaml", "[PATTERN]": "test_resnet*",
    "[KEY]": "train", "SOURCE": "photos",
}  # fmt: skip
DATA = ("photos", "clothing", "clothes", "imagenet-sample", "tiny-imagenet-200", "data/tiny-imagenet-mini")
HERE = {"runs/NAME", "runs/pets", "runs/lift", "runs/pets/deploy"}  # other names of the finished run
ELSEWHERE = {  # needs a package of the examples, and is tested with it
    "distill --data npz:bloodmnist.npz": "tests/data/test_source_packages.py",
    "distill --student tinynet:16 --data digits": "tests/models/test_model_packages.py",
}
SHORT = {
    "data": ["--model", "none"],
    "models": ["--limit", "1"],
}  # what makes a command quick that runs to its end
LONG = {  # where the work of the others begins
    "distill": "tutelage.core.runtime.Runtime.start",
    "quickstart": "tutelage.pipeline.run.begin",
    "resume": "tutelage.cli.commands.carry_out",
    "study": "tutelage.pipeline.study.worker.run_study",
    "data --fetch": "tutelage.data.fetch.fetch",
    "advise": "tutelage.pipeline.advise.advise",
    "teacher": "tutelage.pipeline.teacher_report.report_teacher",
    "compare": "tutelage.evaluation.compare.compare",
    "export": "tutelage.deploy.command.export_named",
}


class WorkBeginsError(Exception):
    """The work of a command would begin here."""


def call(words: list[str]) -> int:
    """Run a command line, and return its exit code."""
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def split(line: str) -> list[str]:
    """The words of a command, up to what a shell would do with its output or do next."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|><")
    lexer.whitespace_split = True
    return list(takewhile(lambda word: word.strip(";&|><"), lexer))


def commands() -> Iterator[tuple[str, ...]]:
    """Each command of the pages and of the heads of the recipes, as its words behind `tutelage`."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for path in RECIPES:
        head = re.findall(r"^#(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        texts.append(re.sub(r" *\\?\n +(?=\w+(\.\w+)*=)", " ", "\n".join(f"  {line}" for line in head)))
    for line in chain.from_iterable(map(code, texts)):
        line = line.partition("  #")[0]
        for found in COMMAND.finditer(line):
            words = split(line[found.end() :])
            if len(words) > 1 or words[0] in ALONE:
                yield tuple(words)


def replaced(command: Iterable[str]) -> tuple[str, ...]:
    """Return a command's words, with what stands for something replaced by it."""
    words = [PLACEHOLDERS.get(word, word).replace("/shared/", "") for word in command]
    if "--fetch" in words and "NAME" in command:
        words[words.index("--fetch") + 1] = "EuroSAT"
    return tuple("runs/done" if word in HERE else word for word in words)


COMMANDS = sorted({replaced(command) for command in set(commands()) if " ".join(command) not in ELSEWHERE})


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in class folders with three parts, a picture, and a finished run with its deployed files."""
    place = tmp_path_factory.mktemp("stock")
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 6), ("test", 6)):
        for name in ("cat", "dog"):
            folder = place / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}-{number}.png")
    shutil.copy(place / "photos/train/cat/train-0.png", place / "cat.jpg")
    recipe = {**TINY, "name": "done", "export": {"enabled": True, "int8": False}, "control": False}
    recipe["train"] = {**TINY["train"], "epochs": 1}
    (place / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with patch("tutelage.pipeline.stages.measure.timed", lambda rows, *_, **__: list(rows)):
        assert call(["distill", f"{place}/tiny.yaml", "--runs", f"{place}/runs", "--progress", "none"]) == 0
    return place


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own for each command."""
    (tmp_path / "data").mkdir()
    for name in DATA:
        (tmp_path / name).symlink_to(stock / "photos")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "holiday").symlink_to(stock / "photos/test/cat")
    shutil.copytree(stock / "runs/done", tmp_path / "runs/done")
    for name in ("cat.jpg", "photo.jpg"):
        shutil.copy(stock / "cat.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_list(file: Path, root: str) -> None:
    """Write a list of images, with columns that are found by their names and others that are not."""
    place = file.parent if root == "." else Path(root)
    shutil.copytree("photos", place, dirs_exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    images = [path.relative_to(place) for path in sorted(place.glob("*/*/*.png"))]
    lines = [f"{path},{path},{path.parent.name},{path.parent.name}\n" for path in images]
    file.write_text("path,photo,label,species\n" + "".join(lines), encoding="utf-8")


def prepared(command: tuple[str, ...]) -> list[str]:
    """The words of a command to run; files that it reads are made."""
    words = list(command)
    recipe = words[1] if words[0] == "distill" and len(words) > 1 else ""
    if recipe.endswith(".yaml") and not Path(recipe).exists():
        assert call(["recipe", "--new", recipe]) == 0
        text = Path(recipe).read_text(encoding="utf-8")
        Path(recipe).write_text(text.replace("train: digits", "train: photos"), encoding="utf-8")
    if "data.exclude=leave-out.txt" in words:
        Path("leave-out.txt").write_text("train/cat/train-0.png\n", encoding="utf-8")
    for word in words:
        if found := re.search(r"(\S+)\.csv\?(?:.*root=(\w+))?", word):
            write_list(Path(f"{found[1]}.csv"), found[2] or ".")
    if "--help" in words:
        return words
    return words + SHORT.get(words[0], [])


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
    with patch("tutelage.report.server.Server.serve_forever"):
        if target is None:
            return call(words), False
        try:
            with patch(target, side_effect=WorkBeginsError):
                return call(words), False
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
    assert reached == (not {words[0], " ".join(words[:2])}.isdisjoint(LONG) and "--help" not in words)


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
    (block,) = PYTHON.findall((ROOT / "docs/deploy.md").read_text(encoding="utf-8"))
    shutil.copytree("runs/done", "runs/pets")
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 6 + 1  # a picture, a folder, an array
