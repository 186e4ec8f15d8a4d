"""What a program uses: names that cost nothing to import, and a run in one call."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.helpers.run_settings import SETTINGS

import tutelage
from tutelage import InputSpec, Model, TutelageError
from tutelage.distillation.checkpoint import state_of

DOCS = Path(__file__).parents[1] / "docs"
HALF = (0.5, 0.5, 0.5)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tutelage; tutelage.Predictor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("prepared", ["", "import logging; logging.basicConfig(); "])
def test_a_warning_is_shown_once(prepared: str) -> None:
    code = f"{prepared}import logging, tutelage; logging.getLogger('tutelage.data').warning('one line')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("one line") == 1


def test_more_is_shown_as_the_page_says() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    code = f"import tutelage\n{block}\nlogging.getLogger('tutelage.pipeline.run').debug('one line')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("one line") == 1


def test_every_public_name_is_there() -> None:
    assert {name for name in tutelage.__all__ if getattr(tutelage, name, None) is None} == set()
    assert set(tutelage.__all__) <= set(dir(tutelage))
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        tutelage.destill  # noqa: B018


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tutelage.Result:
    return tutelage.distill(
        teacher="test_resnet@none", student="test_efficientnet@none", data="digits", epochs=1, lr=3e-3,
        name="by-name", runs=tmp_path_factory.mktemp("runs"), settings=SETTINGS,
    )  # fmt: skip


def test_a_result_is_typed_and_loaded(result: tutelage.Result) -> None:
    assert result.run.name == "by-name"
    assert {row.role: row.top1 for row in result.table.rows}.keys() == {
        "teacher",
        "start",
        "control",
        "distilled",
    }
    assert result.verdict.outcome in {"better", "worse", "not significantly different"}
    assert result.verdict.against == "control"
    assert result.verdict.sentence.startswith("The kept student")
    assert result.student.class_ids == tuple("0123456789")
    assert result.student.module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert result.report.is_file()
    assert result.deployed is None
    assert result.findings


def test_objects_are_copied_and_stay_as_they_are(tmp_path: Path) -> None:
    spec = InputSpec(32, 32, mean=HALF, std=HALF, crop_pct=1.0)
    torch.manual_seed(0)
    teacher = Model.of(timm.create_model("test_resnet", num_classes=10), input_spec=spec, name="mine")
    student = Model.of(
        timm.create_model("test_efficientnet", num_classes=10), input_spec=spec, pretrained=False
    )
    before = [state_of(model.module) for model in (teacher, student)]
    settings = {key: value for key, value in SETTINGS.items() if "resolution" not in key}
    result = tutelage.distill(teacher, student, "digits", epochs=1, runs=tmp_path, settings=settings)
    for model, state in zip((teacher, student), before, strict=True):
        assert all(tensor.equal(state[name]) for name, tensor in state_of(model.module).items())
    assert result.verdict.against == "control"
    assert result.student.name == student.name
    assert "object" not in result.student.name


def test_several_seeds_are_summed_up(tmp_path: Path) -> None:
    result = tutelage.distill(
        "test_resnet@none", "test_efficientnet@none", "digits", epochs=1, seeds=2, runs=tmp_path,
        settings=SETTINGS | {"control": False, "data.limit": 120},
    )  # fmt: skip
    assert result.seeds is not None
    assert result.seeds["runs"] == ["seed-0", "seed-1"]
    assert result.run.name == "seed-0"


def test_compare_takes_names_and_modules() -> None:
    table = tutelage.compare(["test_resnet@none", timm.create_model("test_efficientnet")], batch_size=2)
    assert [row.model for row in table.rows] == ["test_resnet@none", "EfficientNet"]
    assert all(row.latency_ms for row in table.rows)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"teacher": 3}, "a model is a name, a Model or an nn.Module, not int"),
        (
            {"settings": {"loss.temprature": 2}},
            "tutelage.distill: unknown key 'loss.temprature'; did you mean 'loss.temperature'",
        ),
        ({"settings": {"train.epochs": 2}}, "train.epochs is given twice"),
        ({"settings": {"loss.terms": [{"kll": {}}]}}, "no loss 'kll', did you mean kl"),
        ({"data": "nowhere"}, "data source 'nowhere'"),
        ({"progress": "loud"}, "loud: use auto, rich, plain, json or none"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: dict[str, Any], line: str
) -> None:
    given = {
        "teacher": "test_resnet@none",
        "student": "test_efficientnet@none",
        "data": "digits",
        "epochs": 1,
    }
    with pytest.raises(TutelageError, match=line):
        tutelage.distill(**given | arguments, runs=tmp_path / "runs")
    if "data" not in arguments:
        assert not (tmp_path / "runs").exists()
