"""`train.batch_size=auto`: what fits into memory is chosen once, for all trainings of a run."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.conftest import TINY
from tests.helpers.command_line import call
from tests.helpers.killing import free_port, together
from tests.helpers.small_memory import fits_in_each, takes
from tests.pipeline.test_processes import processes
from timm.models import EfficientNet, ResNet

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import dump_recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.core.values import AUTO
from tutelage.data.loading import train_loader
from tutelage.pipeline.choices import BATCH, choices_of, settings_of
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.study.plan import load_study
from tutelage.pipeline.study.worker import run_study

KEY = "train.batch_size"


@pytest.fixture
def auto(tiny: dict) -> dict:
    tiny["train"] |= {"batch_size": "auto", "epochs": 1}
    tiny["teacher"]["fit"] = "no"
    return tiny


def chosen(tree: dict, place: Path, memo: Path | None = None) -> dict:
    """What a run chooses for the batch when it begins."""
    recipe = parse_recipe(tree)
    prepared = prepare(recipe, begin(recipe, place, "test"), Silent(), memo)
    found = choices_of(prepared.run)[KEY]
    assert prepared.recipe.train.batch_size == found["value"]
    return found


def test_the_word_is_read_and_written(tiny: dict, tmp_path: Path) -> None:
    recipe = parse_recipe({"train": {"batch_size": "auto"}})
    assert recipe.train.batch_size == AUTO
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert "batch_size: auto" in dump_recipe(recipe)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert parse_recipe({}).train.batch_size == BATCH == 64
    for wrong in ("all", 1, -1, 2.5, True):
        with pytest.raises(TutelageError, match=r"train\.batch_size"):
            parse_recipe({"train": {"batch_size": wrong}})


@pytest.mark.parametrize("fit", ["no", {"epochs": 1}])
def test_where_memory_suffices_a_run_is_that_with_64(fit: object, auto: dict, tmp_path: Path) -> None:
    auto["teacher"]["fit"] = fit
    students = []
    for name, size in (("auto", "auto"), ("fixed", 64)):
        auto["train"]["batch_size"] = size
        recipe = parse_recipe(auto | {"name": name})
        run = begin(recipe, tmp_path, "test")
        distill(recipe, run, Silent())
        students.append((run.control.read_bytes(), run.student.read_bytes(), read_json(run.candidates)))
    assert students[0] == students[1]
    assert choices_of(Run(tmp_path / "auto"))[KEY] == {
        "value": 64,
        "why": "training steps fit into memory with it, and auto takes no more",
    }
    assert KEY not in choices_of(Run(tmp_path / "fixed"))


def test_a_run_takes_what_fits_and_a_resume_keeps_it(
    auto: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto["train"] |= {"epochs": "auto", "patience": 1}
    auto["data"]["limit"] = 60
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(auto))
    batches = []

    def loader(*arguments: object, batch_size: int, **options: object) -> object:
        batches.append(batch_size)
        return train_loader(*arguments, batch_size=batch_size, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tutelage.distillation.loop.train_loader", loader)
    with monkeypatch.context() as patched:
        takes(patched, 11, EfficientNet, training=True)
        words = ("--name", "run", "--runs", str(tmp_path), "--progress", "plain")
        assert call("distill", str(path), *words) == 0
    run = Run(tmp_path / "run")
    assert choices_of(run)[KEY]["value"] == 8
    assert (
        "auto: train.batch_size = 8 (training steps of 32 images do not fit into memory, of 8 they do)"
        in " ".join(capsys.readouterr().out.split())
    )
    assert set(batches) == {8}
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"control", "distill"}
    assert choices_of(run)["train.epochs"]["value"] == 40  # of 7 steps each
    assert settings_of(run).train.batch_size == 8
    assert load_recipe(run.recipe).train.batch_size == AUTO
    before = {place: place.read_bytes() for place in (run.choices, run.student, run.control)}
    monkeypatch.setattr("tutelage.pipeline.stages.batch_size.largest_batch", lambda *_: 1 / 0)
    assert call("resume", str(run.path), "--progress", "none") == 0
    assert {place: place.read_bytes() for place in before} == before


def test_the_fit_of_a_teacher_and_its_answers_count(
    auto: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        takes(patched, 20, ResNet)
        assert chosen(auto | {"name": "answers"}, tmp_path)["value"] == 16
    takes(monkeypatch, 9, ResNet, training=True)
    assert chosen(auto | {"name": "none"}, tmp_path)["value"] == 64
    auto["teacher"]["fit"] = {"epochs": 1}
    assert chosen(auto | {"name": "fit"}, tmp_path)["value"] == 8


def test_a_fitted_teacher_can_still_be_trained(auto: dict, tmp_path: Path) -> None:
    auto["teacher"]["fit"] = {"epochs": 1}
    auto["train"]["precision"] = "auto"
    recipe = parse_recipe(auto | {"name": "run"})
    run = begin(recipe, tmp_path, "test")
    distill(recipe, run, Silent())
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"teacher-fit", "control", "distill"}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"two_heads": True, "label_weight": 0.5}},
        {"loss": {"terms": [{"crd": {"student": "blocks.1", "teacher": "layer2"}}]}},
        {"targets": {"mode": "cached"}, "train": {"l2_sp": 0.1}},
        {"data": {"labels_per_class": 2}, "train": {"labelled_share": 0.5}},
    ],
)
def test_it_works_with_all_kinds_of_losses_and_targets(changes: dict, auto: dict, tmp_path: Path) -> None:
    for part, values in changes.items():
        auto[part] = (auto.get(part, {}) if part != "loss" else {}) | values
    assert chosen(auto | {"name": "run"}, tmp_path)["value"] == 64


def test_nothing_fits(
    auto: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(monkeypatch, 1, EfficientNet, training=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(auto))
    assert call("distill", str(path), "--name", "run", "--runs", str(tmp_path), "--progress", "none") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: train.batch_size=auto: the training steps of not even 2 images fit into the memory of cpu; use"
    )
    assert not (tmp_path / "run").exists()


def test_seeds_and_trials_have_one_batch(auto: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in (0, 1):
        with monkeypatch.context() as patched:
            takes(patched, 20 if seed == 0 else 100, EfficientNet, training=True)
            tree = auto | {"name": f"seed-{seed}", "train": auto["train"] | {"seed": seed}}
            found.append(chosen(tree, tmp_path, memo=tmp_path / "shared"))
    assert found[0] == found[1]
    assert found[0]["value"] == 16


def test_trials_of_a_study_have_one_batch(
    auto: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto |= {"control": False}
    path = tmp_path / "study.yaml"
    variants = [{"name": "plain"}, {"name": "other", "loss.temperature": 1}, {"name": "own", KEY: 32}]
    path.write_text(yaml.safe_dump({"name": "sizes", "base": auto, "variants": variants}))
    takes(monkeypatch, 20, EfficientNet, training=True)
    run_study(load_study(path, []), tmp_path, Silent(), "test")
    sizes = {
        run.name: load_recipe(run / "recipe.yaml").train.batch_size
        for run in (tmp_path / "sizes").rglob("*-*")
        if (run / "recipe.yaml").exists()
    }
    assert sorted(sizes.values()) == [16, 16, 32]


def test_all_processes_take_the_smallest(tmp_path: Path) -> None:
    tree = copy.deepcopy(TINY)
    tree["teacher"]["fit"] = "no"
    tree["data"] |= {"limit": 97}
    tree["train"] |= {"batch_size": "auto", "epochs": 1}
    tree |= {"control": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    begun = ("distill", tmp_path / "recipe.yaml", "--name", "run", "--runs", tmp_path)
    ended = together(*begun, log=tmp_path / "log", port=free_port(), before=partial(fits_in_each, (24, 8)))
    assert [one.code for one in ended] == [0, 0], ended
    run = Run(tmp_path / "run")
    assert processes(run) == 2
    assert choices_of(run)[KEY]["value"] == 16
    (row,) = read_jsonl(run.metrics)
    assert row["step"] == read_json(run.splits)["parts"]["train"]["size"] // 16
