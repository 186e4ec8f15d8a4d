"""What is known of a run before it begins: `--dry-run` trains and writes nothing, and `--time` chooses epochs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.pipeline import cost
from tutelage.pipeline import forecast as module
from tutelage.pipeline.choices import choices_of
from tutelage.pipeline.cost import Speeds
from tutelage.pipeline.forecast import Forecast, forecast, parse_time, within

TINY = {
    "teacher": {"model": "test_resnet@none", "resolution": 32, "fit": {"epochs": 3}},
    "student": {"model": "test_vit@none", "resolution": 32},
    "data": {"train": "digits", "limit": 200, "workers": 0},
    "train": {"batch_size": 20, "precision": "fp32"},
}
WORDS = [
    "teacher.model=test_resnet@none", "teacher.resolution=32", "teacher.fit={epochs: 3}",
    "student.model=test_vit@none", "student.resolution=32", "data.limit=200", "data.workers=0",
    "train.batch_size=20", "train.precision=fp32",
]  # fmt: skip
SPEEDS = Speeds(
    teacher=100.0,
    teacher_training=50.0,
    student=200.0,
    student_training=80.0,
    decoding=math.inf,
    copies_mb=0.0,
)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """The speeds of this machine, which are always the same."""
    monkeypatch.setattr(module, "measure_speeds", lambda *_, **__: SPEEDS)
    return SPEEDS


def made(tmp_path: Path, **changed: object) -> Forecast:
    return forecast(parse_recipe(TINY | changed), tmp_path, lambda line: None)


@pytest.mark.usefixtures("speeds")
def test_a_batch_that_depends_on_memory_is_shown_as_the_largest_it_may_be(tmp_path: Path) -> None:
    found = made(tmp_path, train={"batch_size": "auto", "precision": "fp32"})
    (line,) = [line for line in found.lines() if line.startswith("schedule: ")]
    assert "batches of 64 or less, as memory allows, lr" in line
    few = made(tmp_path, train={"batch_size": "auto"}, data=TINY["data"] | {"limit": 50})
    assert few.recipe.train.batch_size == 32
    assert found.recipe.train.epochs == 40


# --- what it costs


@pytest.mark.usefixtures("speeds")
def test_every_stage_has_its_share_of_the_time(tmp_path: Path) -> None:
    found = made(tmp_path)
    splits = found.assembled.splits
    train, val, test = len(splits.train), len(splits.val), len(splits.test)
    seconds = found.cost(10).seconds
    assert list(seconds) == [
        "fit of the teacher",
        "pre-flight",
        "training of control and student",
        "selection on val",
        "evaluation on test",
    ]
    assert seconds["fit of the teacher"] == pytest.approx(3 * (train / 50 + val / 100))
    assert seconds["training of control and student"] == pytest.approx(
        10 * (2 * train / 80 + train / 100) + 2 * 10 * 2 * val / 200  # of the student and of its average
    )
    # test_vit has no BatchNorm, and random weights are not interpolated: the start; last, best and EMA; a soup of each
    assert seconds["selection on val"] == pytest.approx(2 * (1 + 3 * 2) * val / 200)
    assert seconds["evaluation on test"] == pytest.approx(test * (1 / 100 + 4 / 200))


@pytest.mark.usefixtures("speeds")
@pytest.mark.parametrize("labels", [None, 3])
def test_the_fit_of_a_teacher_with_images_of_its_own_is_counted_by_these(
    labels: int | None, tmp_path: Path
) -> None:
    data = {"train": "digits#student", "teacher": "digits#teacher", "labels_per_class": labels, "workers": 0}
    found = made(tmp_path, data=data)
    splits = found.assembled.splits
    assert splits.teacher is not None
    assert len(splits.teacher) != len(splits.train)
    fit = found.cost(10).seconds["fit of the teacher"]
    assert fit == pytest.approx(3 * (len(splits.teacher) / 50 + len(splits.val) / 100))


@pytest.mark.usefixtures("speeds")
def test_a_run_without_control_and_without_a_fit_costs_less(tmp_path: Path) -> None:
    alone = made(tmp_path, control=False, teacher=TINY["teacher"] | {"fit": "no"})  # type: ignore[operator]
    seconds = alone.cost(10).seconds
    assert "fit of the teacher" not in seconds
    train, val = len(alone.assembled.splits.train), len(alone.assembled.splits.val)
    assert seconds["training of the student"] == pytest.approx(
        10 * (train / 80 + train / 100) + 10 * 2 * val / 200
    )


def test_speeds_are_measured_for_what_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def probe(name: str, rate: float) -> object:
        def measured(_module: object, spec: object, size: int, _device: object, precisions: tuple) -> dict:
            timed.append((name, precisions))
            return dict.fromkeys(precisions, rate)

        return measured

    monkeypatch.setattr(cost.precision, "probe_inference", probe("inference", 100.0))
    monkeypatch.setattr(cost.precision, "probe_training", probe("training", 50.0))
    others = TINY["teacher"] | {"others": ["test_vit@none"]}  # type: ignore[operator]
    measured = made(tmp_path, teacher=others).speeds
    assert measured == Speeds(50.0, 50.0, 100.0, 50.0, math.inf, 0.0)  # two teachers answer for each image
    assert timed.count(("training", ("fp32",))) == 2
    timed.clear()
    assert made(tmp_path, teacher=TINY["teacher"] | {"fit": "no"}).speeds.teacher_training is None  # type: ignore[operator]
    assert timed.count(("training", ("fp32",))) == 1


# --- a dry run


def test_a_dry_run_tells_what_the_run_would_have_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "tutelage.pipeline.context.train", lambda *_, **__: pytest.fail("something was trained")
    )
    main_ends(["distill", *WORDS, "--dry-run", "--seeds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "training: 200 images of digits, 19 to 21 of each of 10 classes" in lines
    assert any(line.startswith("test: 200 images of digits") for line in lines)
    place = lines.index("teacher: test_resnet@none (random), 32 px")
    assert lines[place + 1] == "  1.43 MiB, 0.004 GMACs, a new head of 10 classes, then all layers are fitted"
    assert "schedule: 40 epochs, batches of 20, lr 0.003 (epochs and lr: auto)" in lines
    assert any(line.startswith("  fit of the teacher") and line.endswith(" min") for line in lines)
    assert any(line.startswith("  in all") and line.endswith("MB of disk space") for line in lines)
    assert lines[-2:] == ["this is the time of one of 2 seeds", "nothing was trained or written"]
    assert max(map(len, lines)) <= 100
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("loss.name=kll", "no loss 'kll', did you mean kl"),
        ("train.optimizer=adamx", "train.optimizer"),
        ("teacher.model=efficientvit_b11", "did you mean 'efficientvit_b1'"),
        ("data.train=folder:nothing", "nothing"),
    ],
)
def test_a_dry_run_is_refused_for_what_the_run_would_be(
    word: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in main_refuses(["distill", *WORDS, word, "--dry-run"], capsys)
    assert not list(tmp_path.iterdir())


# --- a time


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400)]
)
def test_a_time_in_seconds(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["15", "0m", "", "m", "-5m", "1d", "15 minutes", "1m1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(TutelageError, match="write hours, minutes or seconds, such as --time 15m"):
        parse_time(text)


@pytest.mark.usefixtures("speeds")
def test_the_most_epochs_that_fit_are_chosen(tmp_path: Path) -> None:
    found = made(tmp_path)
    budget = 60 * found.cost(7).minutes
    timed, why = within(found, budget + 0.01, "--time 2m")
    assert timed.recipe.train.epochs == timed.assembled.recipe.train.epochs == 7
    assert why.startswith("--time 2m: the run is estimated to take ")
    assert within(found, budget - 0.01, "--time 2m")[0].recipe.train.epochs == 6
    assert within(found, 1e9, "--time 9h")[0].recipe.train.epochs == 40  # as many as auto would ever take


@pytest.mark.usefixtures("speeds")
def test_a_time_in_which_one_epoch_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TutelageError, match=r"--time 5s: with one epoch the run is estimated to take 0\.\d min \(fit of"
    ):
        within(made(tmp_path), 5.0, "--time 5s")


@pytest.mark.usefixtures("speeds")
def test_a_time_and_epochs_are_refused(tmp_path: Path) -> None:
    found = made(tmp_path, train={"epochs": 3})
    with pytest.raises(TutelageError, match=r"--time 9m and train\.epochs=3: give one of them"):
        within(found, 540.0, "--time 9m")


@pytest.mark.usefixtures("speeds")
def test_a_run_with_a_time_has_its_epochs_in_the_recipe_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[Recipe, Run]] = []
    monkeypatch.setattr("tutelage.cli.distill.carry_out", lambda recipe, run, _: begun.append((recipe, run)))
    wanted, _ = within(made(tmp_path), 120.0, "")
    main_ends(["distill", *WORDS, "--time", "2m", "--runs", str(tmp_path), "--name", "timed"])
    ((recipe, run),) = begun
    assert 1 < recipe.train.epochs == wanted.recipe.train.epochs < 40
    assert load_recipe(run.recipe) == recipe  # so that a resume has the same
    choice = choices_of(run)["train.epochs"]
    assert choice["value"] == recipe.train.epochs
    assert choice["why"].startswith("--time 2m: the run is estimated to take ")
    assert choice["why"].endswith("auto would give 40 epochs")
    assert json.loads(run.begun.read_text())["recipe"]["train"]["epochs"] == recipe.train.epochs


def test_a_wrong_time_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", *WORDS, "--time", "soon", "--runs", str(tmp_path), "--name", "timed"]
    assert "--time soon: write hours" in main_refuses(words, capsys)
    assert not list(tmp_path.iterdir())


def main_ends(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def main_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err
