"""The commands of the documentation, and a folder that has what a reader of it would have."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import yaml
from PIL import Image
from tests.conftest import TINY
from tests.helpers.command_line import call
from tests.test_docs import PAGES, ROOT, code

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
    "[KEY]": "train", "SOURCE": "photos", "MODEL": "tf_efficientnet_lite2", "EPOCHS": "2",
}  # fmt: skip
DATA = (
    "photos",
    "clothing",
    "clothes",
    "imagenet-sample",
    "imagenet-sample-mirrored",
    "tiny-imagenet-200",
    "tiny-10",
    "data/tiny-imagenet-mini",
)
HERE = {
    "runs/NAME",
    "runs/sample",
    "runs/clothes",
    "runs/pets",
    "runs/lift",
    "runs/pets/deploy",
    "teacher-deploy",
}  # other names of the finished run
ELSEWHERE = {  # needs a package of the examples, and is tested with it; or a network, and is tested without one
    "distill --data npz:bloodmnist.npz": "tests/data/test_source_packages.py",
    "distill --student tinynet:16 --data digits": "tests/models/test_model_packages.py",
    "distill --data wds:https://host/{000..099}.tar": "tests/data/test_streaming.py",
    "distill --data wds:s3://bucket/train-{000..099}.tar?side=320": "tests/data/test_streaming.py",
    "distill --data hf:food101?streaming": "tests/data/test_hub_stream.py",
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
    "cascade": "tutelage.pipeline.cascade.make_cascade",
}


def split(line: str) -> list[str]:
    """The words of a command, up to what a shell would do with its output or do next."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|><")
    lexer.whitespace_split = True
    lexer.commenters = ""  # a shell takes the # of photos#val as it is
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


def is_long(command: Iterable[str]) -> bool:
    """Whether a command would work for minutes or hours."""
    words = list(command)
    return not {words[0], " ".join(words[:2])}.isdisjoint(LONG) and "--help" not in words


COMMANDS = sorted({replaced(command) for command in set(commands()) if " ".join(command) not in ELSEWHERE})


def make_stock(place: Path) -> None:
    """Write photographs in class folders with three parts, a picture, and a finished run with its deployed files."""
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
        assert call("distill", f"{place}/tiny.yaml", "--runs", f"{place}/runs", "--progress", "none") == 0


def make_folder(place: Path, stock: Path) -> None:
    """Fill a working directory for one command."""
    (place / "data").mkdir()
    for name in DATA:
        (place / name).symlink_to(stock / "photos")
    (place / "recipes").symlink_to(ROOT / "recipes")
    (place / "holiday").symlink_to(stock / "photos/test/cat")
    shutil.copytree(stock / "runs/done", place / "runs/done")
    for name in ("cat.jpg", "photo.jpg"):
        shutil.copy(stock / "cat.jpg", place / name)


def _write_list(file: Path, root: str) -> None:
    """Write a list of images, with columns that are found by their names and others that are not."""
    place = file.parent if root == "." else Path(root)
    shutil.copytree("photos", place, dirs_exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    images = [path.relative_to(place) for path in sorted(place.glob("*/*/*.png"))]
    lines = [f"{path},{path},{path.parent.name},{path.parent.name}\n" for path in images]
    file.write_text("path,photo,label,species\n" + "".join(lines), encoding="utf-8")


def _write_part(folder: Path, part: str) -> None:
    """Write a list of the images of one part of a folder into it."""
    if folder.is_symlink():  # the stock is of all commands
        folder.unlink()
        shutil.copytree("photos", folder)
    lines = [f"{path.relative_to(folder)},{path.parent.name}\n" for path in folder.glob(f"{part}/*/*.png")]
    (folder / f"{part}.csv").write_text("path,label\n" + "".join(lines), encoding="utf-8")


def prepared(command: tuple[str, ...]) -> list[str]:
    """The words of a command to run in the working directory; files that it reads are made."""
    words = list(command)
    recipe = words[1] if words[0] == "distill" and len(words) > 1 else ""
    if recipe.endswith(".yaml") and not Path(recipe).exists():
        assert call("recipe", "--new", recipe) == 0
        text = Path(recipe).read_text(encoding="utf-8")
        Path(recipe).write_text(text.replace("train: digits", "train: photos"), encoding="utf-8")
    if "--defer-to" in words and "--threshold" not in words:  # the finished run has none of its own
        words += ["--threshold", "0.5"]
    if "data.exclude=leave-out.txt" in words:
        Path("leave-out.txt").write_text("train/cat/train-0.png\n", encoding="utf-8")
    for word in words:
        if found := re.search(r"(\S+)\.csv\?(?:.*root=(\w+))?", word):
            _write_list(Path(f"{found[1]}.csv"), found[2] or ".")
        if found := re.search(r"csv:([\w-]+)/(val|test)\.csv$", word):
            _write_part(Path(found[1]), found[2])
    if "--help" in words:
        return words
    return words + SHORT.get(words[0], [])
