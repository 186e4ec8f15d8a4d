"""An export that fine-tunes the student for int8: its files, its record, its card, and what it refuses."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.deploy.qad.test_tune import in_copy

from tutelage.cli import main
from tutelage.core.components import QadRecipe
from tutelage.core.files import read_json
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.deploy.build import MIB, Deployed
from tutelage.deploy.command import export_run
from tutelage.deploy.export import export_model
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.qad.candidates import Tuning, better
from tutelage.deploy.qad.tune import Tuned, Tuner
from tutelage.deploy.qad.words import PLAIN, PTQ, QAD, QAT
from tutelage.deploy.runtimes.registry import VARIANTS
from tutelage.models.source import Model

pytest.importorskip("nncf", reason="needs the extra `deploy`")


def worsened(model: Model, share: float) -> Model:
    """The model with noise in its weights."""
    made = model.copied()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(share * parameter.std(correction=0) * noise)
    return made


@pytest.mark.slow
def test_a_run_is_exported_with_the_four_ways_side_by_side(tuner: Tuner, tmp_path: Path) -> None:
    run = in_copy(tuner, tmp_path / "run").run
    report = export_run(run, changes={"qad": {"epochs": 1}, "formats": ["openvino"]})
    record = read_json(run.deploy / "deploy.json")["qad"]
    assert record == report.record()["qad"] | {"training": record["training"]}
    assert [row["candidate"] for row in record["rows"]] == [PLAIN, PTQ, QAD, QAT]
    assert record["chosen"].keys() == {"model-int8.xml"}
    assert record["chosen"]["model-int8.xml"] in {PTQ, QAD}, "the control is never deployed"
    assert [len(rows) for rows in record["training"].values()] == [1, 1]
    plain, *others = record["rows"]
    assert plain["against_plain"] is None
    assert all(row["against_plain"]["n"] == plain["n"] > 0 for row in others)
    card = (run.deploy / "README.md").read_text()
    assert "## int8 with the teacher's help" in card
    assert "in this folder" in card
    assert Predictor(run.deploy, precision="int8")(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())


def deployed_as(model: Model, place: Path, sizes: dict[str, int]) -> Deployed:
    """A model with a file of this many bytes for each variant."""
    place.mkdir()
    for file, size in sizes.items():
        (place / file).write_bytes(bytes(size))
    variants = tuple(one for one in VARIANTS if one.file in sizes)
    manifest = Manifest(model.name, model.input_spec, tuple("0123456789"), tuple("0123456789"), {})
    return Deployed(model, place, manifest, variants)


@pytest.mark.parametrize(
    ("ptq", "qad", "kept"),
    [
        ((90.0, 2 * MIB), (91.0, 2 * MIB), QAD),
        ((91.0, 2 * MIB), (90.0, 1 * MIB), PTQ),
        ((90.0, 2 * MIB), (90.0, 1 * MIB), QAD),
        ((90.0, 2 * MIB), (90.0, 2 * MIB - 9), PTQ),
        ((90.0, 2 * MIB), None, PTQ),
    ],
)
def test_the_file_that_is_better_on_val_is_kept_and_of_equals_the_smaller_one(
    student: Model,
    tmp_path: Path,
    ptq: tuple[float, int],
    qad: tuple[float, int] | None,
    kept: str,
) -> None:
    """The control is never kept, however good it is."""
    file = "model-int8.onnx"
    given = {PTQ: ptq, QAD: qad, QAT: (99.0, MIB)}
    made = {
        name: deployed_as(student, tmp_path / name, {file: found[1]} if found else {})
        for name, found in given.items()
    }
    on_val = {name: {file: found[0]} if found else {} for name, found in given.items()}
    (variant,) = made[PTQ].variants
    assert better(made, on_val, variant) == kept


@pytest.mark.slow
def test_a_file_that_is_better_on_val_is_the_one_that_is_deployed(tuner: Tuner, tmp_path: Path) -> None:
    """Of a student that is spoilt, the fine-tuned one is the student as it was."""
    splits = tuner.splits
    spoilt = worsened(tuner.student, 2.0)
    report = export_model(
        spoilt,
        tmp_path / "out",
        calibration=splits.train,
        validation=splits.val,
        test=splits.test,
        formats=["openvino"],
        max_drop=100,
        tuning=Tuning(lambda: [Tuned(QAD, tuner.student, [])]),
        temperature=1.5,
        provenance={"run": "digits"},
    )
    assert report.qad.chosen == {"model-int8.xml": QAD}
    rows = {row["candidate"]: row for row in report.qad.rows}
    (file,) = (row for row in report.rows if row.role == "int8")
    assert file.top1 == rows[QAD]["top1"] > rows[PTQ]["top1"]
    pair = rows[QAD]["against_plain"]
    assert pair["difference"] == pytest.approx(rows[QAD]["top1"] - rows[PLAIN]["top1"])
    assert pair["low"] > 0
    stored = (tmp_path / "out" / "model-int8.xml").read_text()
    assert "digits" in stored, "the file has its origin"
    assert "1.5" in stored, "and the temperature"


@pytest.mark.slow
def test_auto_trains_only_where_a_file_loses_too_much(tuner: Tuner, tmp_path: Path) -> None:
    calls: list[int] = []

    def tune() -> Sequence[Tuned]:
        calls.append(1)
        raise RuntimeError("no network\nof this kind")

    splits = tuner.splits
    for max_drop, wanted in ((100.0, 0), (-100.0, 1)):
        report = export_model(
            tuner.student,
            tmp_path / "out",
            calibration=splits.train,
            validation=splits.val,
            test=splits.test,
            formats=["openvino"],
            max_drop=max_drop,
            tuning=Tuning(tune, always=False),
        )
        assert len(calls) == wanted
        assert report.qad.chosen == {}
    # a training that fails costs no file
    assert report.qad.failure == "RuntimeError: no network of this kind"
    assert (tmp_path / "out" / "model.xml").exists() or (tmp_path / "out" / "rejected" / "model.xml").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN", "--qad", "0"], "--qad 0: give a number of epochs or auto, such as --qad 2"),
        (["RUN", "--qad", "two"], "--qad two: give a number of epochs or auto, such as --qad 2"),
        (["RUN", "--qad", "2", "--no-int8"], "--qad: it is for int8 files"),
        (["test_resnet@none", "--qad", "2"], "--qad: test_resnet@none is no run"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_at_once(
    qad_run: Run, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", *[str(qad_run.path) if word == "RUN" else word for word in words]])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err


def test_the_recipe_takes_settings_auto_or_null() -> None:
    tree = {"teacher": {"model": "a"}, "student": {"model": "b"}, "data": {"train": "digits"}}
    for given, wanted in ((None, None), ("auto", "auto"), ({"epochs": 3}, QadRecipe(epochs=3))):
        assert parse_recipe(tree | {"export": {"qad": given}}).export.qad == wanted


@pytest.mark.slow
def test_an_export_that_is_killed_continues_and_ends_alike(tuner: Tuner, tmp_path: Path) -> None:
    """With SIGKILL, in the middle of each training."""
    unbroken, broken = (in_copy(tuner, tmp_path / name).run for name in ("unbroken", "broken"))
    program = (
        "import os, signal, sys\n"
        "from tutelage.core.run_dir import Run\n"
        "from tutelage.deploy.command import export_run\n"
        "def say(line):\n"
        "    if sys.argv[2] in line:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "changes = {'qad': {'epochs': 2}, 'formats': ['openvino']}\n"
        "export_run(Run(__import__('pathlib').Path(sys.argv[1])), changes=changes, say=say)\n"
    )

    def export(run: Run, killed_at: str) -> int:
        command = [sys.executable, "-c", program, str(run.path), killed_at]
        return subprocess.run(command, env={**os.environ}, check=False).returncode

    assert export(unbroken, "never") == 0
    for moment in ("QAD: epoch 1", "QAD: epoch 2", "QAT: epoch 1"):
        assert export(broken, moment) == -signal.SIGKILL
    assert export(broken, "never") == 0
    records = [read_json(run.deploy / "deploy.json")["qad"] for run in (unbroken, broken)]
    figures = [[(row["val_top1"], row["top1"]) for row in record["rows"]] for record in records]
    assert figures[0] == figures[1]
    losses = [[row["val"] for row in record["training"][QAD]] for record in records]
    assert losses[0] == losses[1]
    files = [list(run.deploy.rglob("model-int8.bin")) for run in (unbroken, broken)]  # or rejected, both
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
