"""Each long command of the documentation runs to its end, and leaves the files that it promises.

It has what a reader would have, but for the size: tiny pictures, one epoch, and tiny networks for the named ones.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from tests.helpers.clip_files import write_clip
from tests.helpers.command_line import call
from tests.helpers.docs_commands import COMMANDS, RECIPES, is_long, make_folder, make_stock, prepared
from tests.helpers.litert_files import write_litert
from tests.helpers.onnx_files import write_onnx
from tests.helpers.score_files import write_csv
from tests.test_docs import PYTHON, ROOT
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from tutelage.core.files import read_json
from tutelage.core.recipe_tree import has_key, parse_override, set_keys
from tutelage.core.run_dir import Run
from tutelage.deploy.runtimes.registry import runtimes_of
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights
from tutelage.pipeline.advise import command as advising
from tutelage.pipeline.quickstart import SETTINGS
from tutelage.pipeline.study.plan import load_study

pytestmark = pytest.mark.slow

NETWORKS = {
    "tf_efficientnet_lite2": ("test_resnet", "teacher"),
    "efficientvit_b3": ("test_resnet", "teacher"),
    "tf_efficientnet_lite0": ("test_efficientnet", "student"),
    "efficientvit_b1": ("test_efficientnet", "student"),
}
NETWORK = re.compile(rf"(?<![\w./-])({'|'.join(NETWORKS)})(@[^\s,}}'\"]+)?(?![\w-])")
OF_OTHER_LIBRARIES = {
    "torchvision:resnet50": "torchvision:shufflenet_v2_x0_5@none",
    "hf:microsoft/resnet-50": "hf:models/resnet",
    "zero-shot:ViT-B-32@laion2b_s34b_b79k": "zero-shot:models/clip",
    "digits": "digits",
}
SMALL = {  # unless a command or its recipe says otherwise
    "teacher.model": "test_resnet@models/teacher.safetensors",
    "student.model": "test_efficientnet@models/student.safetensors",
    "teacher.resolution": "32",
    "student.resolution": "32",
    "teacher.fit": "{epochs: 1}",
    "data.limit": "120",
    "train.batch_size": "16",
}
ALWAYS = ["data.workers=0", "preflight.allow_weak_teacher=true"]
NETWORK_NEEDED = {
    "data --fetch EuroSAT"
}  # what it does after the download is tested in tests/data/test_fetch.py


def commands(*names: str) -> Any:
    """The long commands of these names, to be tested one by one."""
    found = [words for words in COMMANDS if words[0] in names and is_long(words)]
    return pytest.mark.parametrize("command", found, ids=" ".join)


def smaller(text: str, weights: str = "models") -> str:
    """A text with tiny networks in place of the named ones; a name alone gets weights of a folder."""

    def network(found: re.Match[str]) -> str:
        name, role = NETWORKS[found[1]]
        return name + (found[2] or f"@{weights}/{role}.safetensors")

    text = NETWORK.sub(network, text)
    for name, other in OF_OTHER_LIBRARIES.items():
        text = text.replace(name, other)
    return text


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all working directories share: also the weights of tiny networks, and a run that was stopped."""
    place = tmp_path_factory.mktemp("stock")
    make_stock(place)
    make_models(place)
    return place


def make_models(place: Path) -> None:
    """Write weights whose heads know the classes of the photographs (`pair`), and others (`models`)."""
    for folder, classes in (("pair", ["cat", "dog"]), ("models", ["owl", "fox", "newt"])):
        (place / folder).mkdir()
        for name, role in set(NETWORKS.values()):
            torch.manual_seed(0)
            model = load_model(f"{name}@none").with_head(classes)
            torch.nn.init.normal_(model.module.get_classifier().weight)  # LiteRT has no 4 bits for zeros
            save_weights(model.module, place / folder / f"{role}.safetensors", model.metadata())
    for large, (_, role) in NETWORKS.items():  # as the recipes call them
        shutil.copy(place / f"pair/{role}.safetensors", place / f"pair/{role}-{large}.safetensors")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(place / "models/resnet")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "models/resnet")
    write_clip(place / "models/clip")
    classifier = load_model("test_resnet@none", num_classes=2).at(32)
    write_onnx(classifier.module, place / "teacher.onnx", torch.zeros(1, 3, 32, 32))
    images = sorted(path.relative_to(place / "photos") for path in place.glob("photos/*/*/*.png"))
    classes = ("cat", "dog")
    likely = np.array([[0.9 if path.parent.name == name else 0.1 for name in classes] for path in images])
    write_csv(place / "scores.csv", [str(path) for path in images], classes, likely)
    weight = np.random.default_rng(0).normal(0, 0.1, (2, 3 * 32 * 32)).astype(np.float32)
    write_litert(place / "teacher.tflite", weight, np.zeros(2, np.float32), 32)


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of its own for each command."""
    make_folder(tmp_path, stock)
    (tmp_path / "data/clothes").symlink_to(stock / "photos")
    (tmp_path / "data/tiny-imagenet-pair").symlink_to(stock / "pair")
    for name in ("models", "pair", "teacher.onnx", "teacher.tflite", "scores.csv"):
        (tmp_path / name).symlink_to(stock / name)
    (tmp_path / "recipes").unlink()
    (tmp_path / "recipes").mkdir()
    for recipe in RECIPES:
        text = smaller(recipe.read_text(encoding="utf-8"))
        (tmp_path / "recipes" / recipe.name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with patch.object(advising, "LATENCY_SECONDS", 0.05):
        yield tmp_path


def settled(words: list[str]) -> dict[str, Any]:
    """The keys that a command, its options or its recipe set, as a tree."""
    tree: dict[str, Any] = {}
    for word in words:
        if word.endswith(".yaml"):
            content = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
            tree = content.get("base", content)
    own_recipe = "my.yaml" in words or "recipe.yaml" in words  # as `tutelage recipe --new` writes them
    if own_recipe:
        tree = {"data": {"train": "photos"}}
    set_keys(tree, [parse_override(word) for word in words[1:] if re.match(r"[a-z_.]+=", word)])
    for option in ("teacher", "student"):
        if f"--{option}" in words:
            set_keys(tree, [parse_override(f"{option}.model=given")])
    return tree


def shortened(command: tuple[str, ...], weights: str = "models") -> list[str]:
    """The words of a command, its files made, with tiny networks, and settings that make it short."""
    words = [smaller(word, weights).replace("cuda:1", "cpu") for word in prepared(command)]
    if command[0] not in {"distill", "study"}:
        return words
    known = settled(words)
    left: set[str] = set()
    given = [word.removeprefix("teacher.model=").strip("'") for word in words]
    if any(word.startswith(("onnx:", "tflite:", "zero-shot:", "predictions:")) for word in given):
        left = {"teacher.fit"}
    if any(word.startswith("predictions:") for word in words):
        left |= {"teacher.resolution"}
    small = [f"{key}={value}" for key, value in SMALL.items() if not (has_key(known, key) or key in left)]
    if "--time" in words:
        words[words.index("--time") + 1] = "60s"
    elif "--dry-run" not in words:
        small.append("train.epochs=1")
    return [*words, *small, *ALWAYS]


def run_to_the_end(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, and return what it prints."""
    code = call(*words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def new_runs() -> list[Run]:
    return [Run(path) for path in sorted(Path("runs").iterdir()) if path.name != "done"]


def is_whole(run: Run) -> bool:
    """Whether a run has all that a finished one has, and `verify` finds nothing."""
    files = (run.student, run.comparison, run.predictions, run.diagnosis, run.report, run.digests)
    return all(file.is_file() for file in files) and call("verify", str(run.path)) == 0


@commands("distill")
def test_distill(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "torch:my_models:make_teacher" in command:
        (block,) = PYTHON.findall((ROOT / "docs/teachers.md").read_text(encoding="utf-8"))
        Path("my_models.py").write_text(block.replace("192, 10", "192, 2"), encoding="utf-8")
    run_to_the_end(shortened(command), capsys)
    runs = new_runs()
    assert len(runs) == (0 if "--dry-run" in command else 1)
    for run in runs:
        seeds = int(command[command.index("--seeds") + 1]) if "--seeds" in command else 1
        each = [run] if seeds == 1 else [Run(path) for path in run.path.glob("seed-*")]
        assert len(each) == seeds
        assert all(map(is_whole, each))
        assert seeds == 1 or run.seeds.is_file()


@commands("resume")
def test_resume(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/done")
    words = shortened(("distill", "--data", "photos", "--name", "done"))
    with patch("tutelage.pipeline.run.train_student", side_effect=KeyboardInterrupt):
        assert call(*words) == 130
    assert not Run(Path("runs/done")).student.exists()
    run_to_the_end(list(command), capsys)
    assert is_whole(Run(Path("runs/done")))


@commands("quickstart")
def test_quickstart(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {
        "train": SETTINGS["train"] | {"epochs": 1},
        "teacher": SETTINGS["teacher"] | {"fit": {"epochs": 1}},
    }
    allowed = {"preflight": {"allow_weak_teacher": True}}
    with patch.dict(SETTINGS, few | allowed):
        run_to_the_end(list(command), capsys)
    (run,) = new_runs()
    seeds = 3 if "--seeds" in command else 1
    assert len(list(run.path.glob("seed-*"))) == (0 if seeds == 1 else seeds)
    if seeds == 1:
        assert is_whole(run)
        assert (run.deploy / "model.onnx").is_file()


@commands("study")
def test_study(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(command[1])
    named_in_all = [word for before, word in pairwise(command) if before == "--variant"]
    named = named_in_all[:2]
    seeds = 2 if "--seeds" in command else 1
    if len(command) > 2:  # the same recipe as a whole is tested without these words
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        tree["variants"] = [one for one in tree["variants"] if not named or one["name"] in named][:2]
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    if seeds > 1:
        command = tuple("2" if before == "--seeds" else word for before, word in pairwise(("", *command)))
    for name in named_in_all[2:]:
        at = command.index(name)
        command = (*command[: at - 1], *command[at + 1 :])
    words = shortened(command)
    run_to_the_end(words, capsys)
    (study,) = Path("studies").iterdir()
    plan = load_study(file, seeds=seeds)
    trials = plan.trials or len(plan.variants)
    ranked = read_json(study / "study.json")["trials"]
    assert len(list((study / "trials").iterdir())) == len(ranked) == trials
    assert trials >= (len(named) or 2)
    assert [one["reason"] for one in ranked if not one.get("test_top1")] == []
    assert (study / "study.md").is_file()


@commands("compare")
def test_compare(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda" in command and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    printed = run_to_the_end(shortened(command, "pair"), capsys)
    assert all(name in printed for name in ("test_resnet", "test_efficientnet"))


@commands("export")
def test_export(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The drop of top-1 that a file may have is that of a large network; a tiny one loses more as int8."""
    formats = [name for flag, name in pairwise(command) if flag == "--format"] or ["onnx", "openvino"]
    for name in chain.from_iterable(runtime.makers for runtime in runtimes_of(formats)):
        pytest.importorskip(name, exc_type=ImportError)
    words = [*shortened(command, "pair"), "--max-drop", "100"]
    if {"--int4", "--qad"} & set(command):  # they need files in int8
        words.append("--int8")
    printed = run_to_the_end(words, capsys)
    found = re.search(r"written to (.*);", printed)
    assert found
    written = {path.name for path in Path(found[1]).iterdir()}
    asked = {runtime.variants[0].file for runtime in runtimes_of(formats)}
    assert {"deploy.json", "preprocess.json"} | asked <= written
    as_in_the_run = "runs/done" in command and "--int8" not in words  # which had none
    if "onnx" in formats:
        assert ("model-int8.onnx" in written) is not as_in_the_run


@commands("cascade")
def test_cascade(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agreement is what networks reach that have learnt next to nothing."""
    printed = run_to_the_end([*prepared(command), "--agreement", "0.02"], capsys)
    assert "cascade.json" in printed
    assert "cascade" in read_json(Path("runs/done/deploy/preprocess.json"))


@commands("teacher")
def test_teacher(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_to_the_end(shortened(command, "pair"), capsys)
    assert "tutelage distill" in printed


@commands("advise")
def test_advise(command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_to_the_end(shortened(command, "pair"), capsys)
    assert "teacher" in printed


def test_the_program_that_distils_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = smaller(PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0])
    settings = ", ".join(
        f"{key!r}: {yaml.safe_load(value)!r}" for key, value in SMALL.items() if not key.endswith(".model")
    )
    assert "epochs=10" in block
    assert "settings={" in block
    more = f'settings={{{settings}, "data.workers": 0, "preflight.allow_weak_teacher": True, '
    names: dict[str, Any] = {}
    exec(block.replace("epochs=10", "epochs=1").replace("settings={", more), names)
    assert is_whole(names["result"].run if isinstance(names["result"].run, Run) else Run(names["result"].run))
    assert names["result"].verdict.sentence in capsys.readouterr().out


def test_the_program_that_advises_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = PYTHON.findall((ROOT / "docs/advise.md").read_text(encoding="utf-8"))
    exec(smaller(block, "pair"), {})
    assert capsys.readouterr().out


def test_no_long_command_is_left_out() -> None:
    tested = {"distill", "resume", "quickstart", "study", "compare", "export", "advise", "teacher", "cascade"}
    left = {" ".join(words) for words in COMMANDS if is_long(words) and words[0] not in tested}
    assert left == NETWORK_NEEDED
