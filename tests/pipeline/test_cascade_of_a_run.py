"""`tutelage cascade RUN`: the threshold, its record, the page and the deployed directory, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tests.helpers.command_line import call
from tests.helpers.fitted import fit

from tutelage.core.files import read_json, write_json, write_text
from tutelage.core.recipe import dump_recipe, parse_recipe
from tutelage.core.records import RunPredictions, TopClasses, read_predictions, write_predictions
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.splits import Splits, make_splits
from tutelage.deploy.cascade import add_threshold
from tutelage.deploy.manifest import Manifest
from tutelage.evaluation.predict import predict_logits
from tutelage.evaluation.quality import quality
from tutelage.models.registry import load_model
from tutelage.pipeline.verify import verify

CLASSES = tuple("0123456789")
CALIBRATION = {"temperature": 1.5, "before": {"ece": 3.0, "nll": 0.4}, "after": {"ece": 2.0, "nll": 0.3}}
RECIPE: dict[str, Any] = {
    "teacher": {"model": "test_resnet@none", "resolution": 32},
    "student": {"model": "test_efficientnet@none", "resolution": 32},
    "data": {"train": "digits", "limit": 400, "workers": 0, "val_fraction": 0.25, "test_fraction": 0.3},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Splits]:
    """What the command reads of a run: two networks, their figures on val, and their answers on test."""
    recipe = parse_recipe(RECIPE)
    run, splits = Run(tmp_path_factory.mktemp("cascade") / "digits"), make_splits(recipe.data)
    run.path.mkdir()
    write_text(run.recipe, dump_recipe(recipe))
    specs = {
        "teacher": fit("test_resnet", splits.train, run.teacher, epochs=4),
        "distilled": fit("test_efficientnet", splits.train, run.student, epochs=10, seed=1),
    }
    models, runtime = {role: load_model(spec) for role, spec in specs.items()}, Runtime.start()

    def logits(role: str, part: str) -> torch.Tensor:
        return predict_logits(
            models[role].module, models[role].input_spec, getattr(splits, part), runtime
        ).logits

    on_val = {role: quality(logits(role, "val"), torch.from_numpy(splits.val.labels)).top1 for role in models}
    costs = {"teacher": {"gmacs": 10.0, "latency_ms": 20.0}, "distilled": {"gmacs": 1.0, "latency_ms": 2.0}}
    rows = [{"model": specs[role], "role": role, **cost} for role, cost in costs.items()]
    write_json(
        run.comparison,
        {"rows": rows, "val": {"top1": on_val}, "calibration": CALIBRATION, "verdict": {}, "test": {"n": 1}},
    )
    top = {role: logits(role, "test").softmax(1).topk(5) for role in models}
    ids = np.array([splits.test.id(place) for place in range(len(splits.test))])
    predictions = {
        r: TopClasses(t.indices.numpy().astype(np.int32), t.values.numpy()) for r, t in top.items()
    }
    write_predictions(run.predictions, RunPredictions(ids, splits.test.labels, CLASSES, predictions))
    write_json(run.digests, {})
    return run, splits


@pytest.fixture
def run(made: tuple[Run, Splits], tmp_path: Path) -> Run:
    """A copy, in which a test may change what it likes."""
    shutil.copytree(made[0].path, tmp_path / "digits")
    return Run(tmp_path / "digits")


def deployed(run: Run) -> Path:
    """As an export leaves it, without a model file."""
    run.deploy.mkdir()
    spec = load_model(f"test_efficientnet@{run.student}").input_spec
    write_json(
        run.deploy / "deploy.json", {"rows": [], "checks": [], "rejected": {}, "missing": {}, "run": {}}
    )
    Manifest("test_efficientnet", spec, CLASSES, CLASSES, temperature=1.5).write(run.deploy)
    return run.deploy


def test_the_threshold_is_recorded_shown_and_deployed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[Run, Splits]
) -> None:
    folder = deployed(run)
    assert call("cascade", str(run.path), "--agreement", "0.7", "--json", str(tmp_path / "out.json")) == 0
    found, out = read_json(run.cascade), capsys.readouterr().out
    assert found == read_json(tmp_path / "out.json")
    assert f"threshold {found['threshold']:g}: on val the student answers" in out
    assert found["chosen"]["bound"] >= 0.7
    assert found["temperature"] == 1.5

    # its figures are those of the definition, computed again with the networks
    splits = made[1]
    student = load_model(f"test_efficientnet@{run.student}")
    logits = predict_logits(student.module, student.input_spec, splits.test, Runtime.start()).logits
    sure = (logits.double() / 1.5).softmax(1).amax(1).numpy() >= found["threshold"]
    teacher = read_predictions(run.predictions).roles["teacher"].first
    both = np.where(sure, logits.argmax(1).numpy(), teacher)
    test = found["test"]
    assert test["answered"] == sure.sum() > 0
    assert test["top1"]["cascade"] == pytest.approx(100 * (both == splits.test.labels).mean())
    assert test["agreed"] == (logits.argmax(1).numpy() == teacher)[sure].sum()
    assert found["cost"]["gmacs"]["cascade"] == pytest.approx(1 + 10 * (1 - test["coverage"]))
    assert test["holds"]

    assert Manifest.read(folder).cascade["threshold"] == found["threshold"]
    text = (folder / "README.md").read_text()
    assert "In a cascade with the teacher" in text
    ModelCard(text)  # its first lines are metadata
    page = run.report.read_text(encoding="utf-8")
    assert 'id="cascade"' in page
    assert f"threshold {found['threshold']:g}" in page
    assert verify(run).ok


def test_a_threshold_of_another_student_is_not_deployed(run: Run) -> None:
    folder = deployed(run)
    assert call("cascade", str(run.path), "--agreement", "0.7") == 0
    shutil.copy(run.teacher, run.student)
    Manifest("m", Manifest.read(folder).input_spec, CLASSES, CLASSES).write(
        folder
    )  # an export writes it anew
    add_threshold(run, folder)
    assert Manifest.read(folder).cascade == {}


def refused(run: Run, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call("cascade", str(run.path), *words) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert not run.cascade.exists()
    return err[-1]


@pytest.mark.parametrize("share", ["0", "1", "95"])
def test_an_agreement_is_a_share(run: Run, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give a share between 0 and 1, such as --agreement 0.95" in refused(
        run, capsys, "--agreement", share
    )


def test_a_run_without_a_teachers_answers_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.predictions.unlink()
    line = refused(run, capsys)
    assert "has no answers of a teacher to the test images; go on with `tutelage resume" in line


def test_a_run_of_several_seeds_names_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    inner = run.path / "seed-0"
    inner.mkdir()
    shutil.copy(run.recipe, inner)
    run.student.unlink()
    assert f"name one of them, such as {inner}" in refused(run, capsys)


def test_several_teachers_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = parse_recipe(RECIPE | {"teacher": {"model": "test_resnet@none", "others": ["test_vit@none"]}})
    write_text(run.recipe, dump_recipe(recipe))
    assert "a cascade hands images to one" in refused(run, capsys)


def test_too_few_validation_images_are_refused_before_any_work(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.pipeline.cascade.kept_student", lambda *_: pytest.fail("began to work"))
    line = refused(run, capsys, "--agreement", "0.99")
    assert "cannot be shown on fewer than 408; give a lower one, such as --agreement 0.98" in line


def test_a_teacher_that_changed_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = read_json(run.comparison)
    before = content["val"]["top1"]["teacher"]
    content["val"]["top1"]["teacher"] = before - 5
    write_json(run.comparison, content)
    assert f"on val now and had {before - 5:.2f}% in the run" in refused(run, capsys, "--agreement", "0.7")


def test_no_threshold_that_reaches_the_agreement_is_one_line(
    run: Run, made: tuple[Run, Splits], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (made[1].train.labels + 1) % 10  # a student that never agrees
    fit("test_efficientnet", made[1].train, run.student, epochs=6, labels=wrong)
    line = refused(run, capsys, "--agreement", "0.9")
    assert "no threshold reaches an agreement of 0.9 with 95% confidence on the 400 images of val" in line
    assert line.endswith("give a lower --agreement")


def test_images_that_the_run_did_not_have_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    kept = read_predictions(run.predictions)
    roles = {role: TopClasses(one.top[1:], one.prob[1:]) for role, one in kept.roles.items()}
    write_predictions(run.predictions, RunPredictions(kept.ids[1:], kept.labels[1:], CLASSES, roles))
    assert f"has the image {str(kept.ids[0])!r}, which the run had not" in refused(
        run, capsys, "--agreement", "0.7"
    )
