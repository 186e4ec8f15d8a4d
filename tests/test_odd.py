"""Odd input at the command line: one line, exit code 2, no traceback, no work, and no run directory left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.cli import main

TINY = [
    "distill", "--teacher", "test_resnet@none", "--student", "test_efficientnet@none", "--progress", "none",
    "teacher.resolution=32", "student.resolution=32", "preflight.allow_weak_teacher=true", "data.workers=0",
    "train.precision=fp32", "train.epochs=1", "train.batch_size=8", "teacher.fit=no",
]  # fmt: skip


def pictures(place: Path, classes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good and bad things in it."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", {"cat": 16, "dog": 16})
    pictures(tmp_path / "onecls", {"cat": 12})
    (tmp_path / "empty").mkdir()
    (tmp_path / "afile").write_text("text")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "broken.yaml").write_text("train: [1, 2")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "unknown.yaml").write_text("trian: {epochs: 3}\n")
    (tmp_path / "both.yaml").write_text("choose: {soup: false}\nselection: {soup: true}\n")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "thing").write_text("mine")
    return tmp_path


# what is changed in a good command, and what the one line says
RECIPES = {
    "a mistyped loss": ("loss.name=klx", "did you mean kl"),
    "a loss without a name": ("loss.name=''", "loss.name"),
    "a mistyped term": ("loss.terms=[{klx: {weight: 1}}]", "klx"),
    "a mistyped setting of a term": ("loss.terms=[{kl: {weigt: 1}}]", "weigt"),
    "a term that is a number": ("loss.terms=[3]", "loss.terms"),
    "two terms in one": ("loss.terms=[{kl: {}, dkd: {}}]", "one term"),
    "an option that a loss lacks": ("loss.options={beta: 3}", "beta"),
    "a negative weight": ("loss.weight=-1", "loss.weight"),
    "no temperature": ("loss.temperature=0", "loss.temperature"),
    "nothing to learn": ("loss.weight=0 loss.label_weight=0", "nothing to learn from"),
    "a key that is near another": ("loss.temprature=2", "did you mean 'loss.temperature'"),
    "an unknown optimizer": ("train.optimizer=adamx", "not one of timm's optimizers"),
    "an optimizer of second order": ("train.optimizer=adahessian", "cannot take a step from gradients alone"),
    "Nesterov without momentum": ("train.optimizer=sgd train.momentum=0", "does not take these settings"),
    "an optimizer that needs a closure": ("train.optimizer=lbfgs", "train.optimizer"),
    "a rate of zero": ("train.lr=0", "train.lr"),
    "a negative rate": ("train.lr=-1", "train.lr"),
    "a rate that is no number": ("train.lr=.nan", "train.lr"),
    "a rate in words": ("train.lr=fast", "train.lr"),
    "no epochs": ("train.epochs=0", "train.epochs"),
    "half an epoch": ("train.epochs=0.5", "train.epochs"),
    "a batch of one": ("train.batch_size=1", "train.batch_size"),
    "a batch larger than the data": ("train.batch_size=100000", "use at most"),
    "an unknown schedule": ("train.schedule=step", "train.schedule"),
    "an unknown precision": ("train.precision=fp16", "train.precision"),
    "an average that never moves": ("train.ema=1", "train.ema"),
    "a negative seed": ("train.seed=-1", "train.seed"),
    "a layer decay of zero": ("train.layer_decay=0", "train.layer_decay"),
    "a negative warm-up": ("train.warmup_epochs=-1", "train.warmup_epochs"),
    "a tiny resolution": ("teacher.resolution=8", "teacher.resolution"),
    "a resolution in words": ("student.resolution=large", "student.resolution"),
    "an empty crop": ("teacher.crop_pct=0", "teacher.crop_pct"),
    "a fit that is unknown": ("teacher.fit=maybe", "teacher.fit"),
    "a crop that is upside down": ("view.crop_scale=[1,0.5]", "lower bound first"),
    "a probability above one": ("view.flip=2", "view.flip"),
    "mixed images with cached targets": ("targets.mode=cached view.mixup=0.2", "targets.mode"),
    "largest classes with another loss": ("targets.mode=cached targets.top_k=3 loss.name=dkd", "top_k"),
    "an unknown kind of targets": ("targets.mode=disk", "targets.mode"),
    "an unknown metric": ("selection.metric=f1", "selection.metric"),
    "a control that is neither": ("control=maybe", "control"),
    "a negative drop": ("export.max_drop=-1", "export.max_drop"),
    "a validation share of zero": ("data.val_fraction=0", "data.val_fraction"),
    "all images for the test": ("data.test_fraction=1", "data.test_fraction"),
    "a limit of no images": ("data.limit=0", "data.limit"),
    "fewer workers than none": ("data.workers=-1", "data.workers"),
    "a cache of nothing": ("data.cache_mb=0", "data.cache_mb"),
    "an unknown tracker": ("track=[wandb]", "track"),
    "an override without a key": ("train.epochs=3 =3", "key.key=value"),
    "an override that is no YAML": ("train.epochs=[3", "not YAML"),
    "a path as a name": ("--name ../outside", "not a path"),
    "a name with a sign": ("--name a?b", "run name"),
    "a name that is taken": ("--name taken", "tutelage resume"),
    "a file in the place of the runs": ("--runs afile", "not a directory"),
    "a file above the place of the runs": ("--runs afile/runs", "not a directory"),
    "an unknown way to report": ("--progress loud", "use auto, rich, plain, json or none"),
    "an option and a key that disagree": ("--epochs 3 train.epochs=5", "disagree"),
    "data that is not there": ("--data nothing", "nothing"),
    "a folder that is not there": ("--data folder:nothing", "nothing"),
    "an empty folder": ("--data empty", "no images"),
    "one class": ("--data onecls", "only one class"),
    "a file as a folder": ("--data folder:afile", "afile"),
    "a kind without a place": ("--data folder:", "say where"),
    "an unknown kind of data": ("--data cvs:afile", "unknown kind"),
    "a part that is not there": ("--data photos#nopart", "nopart"),
    "validation data that is not there": ("--data photos data.val=nothing", "nothing"),
    "test data that is not there": ("--data photos data.test=nothing", "nothing"),
    "unlabelled data that is not there": ("--data photos data.unlabelled=nothing", "nothing"),
    "an unknown teacher": ("teacher.model=efficientvit_b11", "teacher.model"),
}

# whole commands
COMMANDS = {
    "a recipe that is not there": ("distill nothing.yaml", "no such recipe"),
    "a recipe that is no YAML": ("distill broken.yaml", "not YAML"),
    "a recipe that is a list": ("distill list.yaml", "mapping"),
    "a recipe with a mistyped block": ("distill unknown.yaml", "did you mean 'train'"),
    "a recipe that is a folder": ("distill photos", "cannot be read"),
    "a key by its old and its new name": ("distill both.yaml", "old name"),
    "a mistyped teacher": ("distill --teacher efficientvit_b11 --student test_vit@none", "efficientvit_b1"),
    "a mistyped student": ("distill --teacher test_resnet@none --student test_vitt@none", "test_vit"),
    "weights that are not there": ("distill --teacher test_resnet@none.pt", "none.pt"),
    "weights that are damaged": ("distill --teacher test_resnet@bad.safetensors", "bad.safetensors"),
    "an unknown kind of model": ("distill --teacher nokind:x", "unknown kind"),
    "a resume of nothing": ("resume nothing", "not a run directory"),
    "a resume of a file": ("resume afile", "not a run directory"),
    "a page of nothing": ("report nothing", "neither a run directory"),
    "a page of a folder of images": ("report photos", "neither a run directory"),
    "a verification of nothing": ("verify nothing", "not a run directory"),
    "a server for nothing": ("watch nothing", "nothing"),
    "an export of an unknown model": ("export resnet5O", "resnet50"),
    "an export of a path that is not there": ("export runs/none", "no such run directory"),
    "an export of a folder that is no run": ("export photos", "not a run directory"),
    "an export in the place of a file": ("export test_resnet@none --no-int8 --out afile", "not a directory"),
    "a teacher of what is no run": ("export test_resnet@none --no-int8 --teacher", "leave --teacher out"),
    "a prediction with nothing": ("predict nothing photos", "nothing"),
    "a comparison of an unknown model": ("compare resnet5O", "resnet50"),
    "a table in the place of a folder": ("compare test_resnet@none --json afile/x.json", "not a directory"),
    "advice in the place of a folder": ("advise --data digits --json afile/x.json", "not a directory"),
    "a comparison on an unknown device": ("compare test_resnet@none --device tpu", "tpu"),
    "a comparison on data that is not there": ("compare test_resnet@none --data nothing", "nothing"),
    "a study that is not there": ("study nothing.yaml", "nothing.yaml"),
    "a study that is no YAML": ("study broken.yaml", "not YAML"),
}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that is refused."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def left(here: Path) -> list[str]:
    """What is in the directory of runs, but for what was there before."""
    return [path.name for path in (here / "runs").iterdir() if path.name != "taken"]


def test_there_are_at_least_80_situations() -> None:
    assert len(RECIPES) + len(COMMANDS) >= 80


@pytest.mark.parametrize("situation", RECIPES)
def test_odd_recipes_are_refused_before_any_work(
    situation: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, text = RECIPES[situation]
    monkeypatch.setattr("tutelage.pipeline.run.fit_teachers", lambda _: pytest.fail("it began to work"))
    tiny = [word for word in TINY if not ("--teacher" in words and word == "teacher.fit=no")]
    if situation == "an unknown teacher":
        tiny = [word for word in tiny if word not in {"--teacher", "test_resnet@none"}]
        text = "efficientvit_b1"
    assert text in refused([*tiny, *words.split(" ", words.count(" ") if "{" not in words else 0)], capsys)
    assert left(here) == []


@pytest.mark.parametrize("situation", COMMANDS)
def test_odd_commands_are_refused_before_any_work(
    situation: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, text = COMMANDS[situation]
    monkeypatch.setattr("tutelage.pipeline.run.fit_teachers", lambda _: pytest.fail("it began to work"))
    assert text in refused(words.split(), capsys)
    assert left(here) == []


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("mlflow", ["track=[mlflow]"], "tutelage[mlflow]"),
        ("tensorboard", ["track=[tensorboard]"], "tutelage[tensorboard]"),
        ("nncf", ["--export"], "tutelage[deploy]"),
        ("onnxscript", ["export.enabled=true"], "tutelage[deploy]"),
    ],
)
def test_a_missing_package_is_noticed_at_once(
    package: str,
    words: list[str],
    extra: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused([*TINY, *words], capsys)
    assert package in line
    assert extra in line
    assert left(here) == []


def test_a_full_disk_is_noticed_at_once(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        total, free = 1e12, 3e6

    monkeypatch.setattr("tutelage.pipeline.early.shutil.disk_usage", lambda _: Full)
    assert "the disk has 3 MB left" in refused(TINY, capsys)
    assert left(here) == []


def python(here: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_is_wrong_with_the_data_is_known_without_pytorch(here: Path) -> None:
    program = """
import importlib.abc, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise AssertionError("imports torch")

sys.meta_path.insert(0, NoTorch())
from tutelage.cli import main
main()
"""
    for words in (
        ["--data", "nothing"],
        ["--data", "empty"],
        ["train.batch_size=99999"],
        ["--name", "taken"],
    ):
        done = python(here, program, "distill", *words)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["compare", "test_resnet@none"], ["distill", "--epochs", "1"], ["--help"]])
@pytest.mark.parametrize("module", ["typer", "timm", "PIL.Image"])
def test_ctrl_c_while_something_is_imported_is_one_line(here: Path, words: list[str], module: str) -> None:
    program = f"""
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from tutelage.cli import main
main()
"""
    done = python(here, program, *words)
    assert "Traceback" not in done.stderr
    imported = module == "typer" or "--help" not in words
    assert done.returncode == (130 if imported else 0), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 1


def test_ctrl_c_during_an_export_ends_with_one_line(here: Path) -> None:
    """Also below the callbacks of a library's native code, where an exception would end in a crash."""
    pytest.importorskip("nncf")
    program = f"""
import os, sys
from tutelage.deploy import quantise
plain = quantise.normalised
def interrupted(*arguments):
    os.kill(os.getpid(), {int(signal.SIGINT)})
    return plain(*arguments)
quantise.normalised = interrupted
from tutelage.cli import main
main()
"""
    done = python(here, program, "export", "test_resnet@none", "--out", "out")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "stopped"
