"""The model card: what the records say, as a page that the Hugging Face Hub can read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.stats import beta
from tests.deploy.conftest import Exported

from tutelage.core.files import read_json
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.card import CARD, MARK, card, write_card
from tutelage.deploy.manifest import Manifest
from tutelage.evaluation.intervals import exact_interval

MANIFEST = Manifest(
    "test_efficientnet",
    InputSpec(32, 32, (0.5,) * 3, (0.5,) * 3),
    ("cat", "dog | <b>"),
    ("cat", "dog"),
    {
        "weights": "file /home/me/runs/pets/student.safetensors",
        "run": "pets",
        "teacher": "resnet18",
        "student": "test_efficientnet@none",
        "train": "folder:/home/me/photos#train abc",
        "teacher_licence": "cc-by-nc-4.0",
    },
    temperature=1.25,
)


def row(role: str, **figures: Any) -> dict[str, Any]:
    return {"role": role, "top1": 90.0, "n": 200, "size_mb": 1.5, "latency_ms": 2.0, "paired": None} | figures


def check(role: str, file: str) -> dict[str, Any]:
    return {"role": role, "file": file, "images": "folder:/home/me/photos#test", "agreement": 99.5, "n": 200}


def record(**changes: Any) -> dict[str, Any]:
    paired = {"difference": -0.5, "low": -1.5, "high": 0.5, "n": 200}
    return {
        "rows": [row(""), row("onnx"), row("openvino"), row("int8", top1=89.5, paired=paired)],
        "checks": [
            check("onnx", "model.onnx"),
            check("openvino", "model.xml"),
            check("int8", "model-int8.xml"),
        ],
        "rejected": {},
        "missing": {},
        "run": {
            "verdict": "The student is better.",
            "pairs": [{"new": "distilled", "old": "control", "difference": 2, "low": 1, "high": 3, "n": 200}],
            "calibration": {
                "temperature": 1.25,
                "before": {"ece": 9.0, "nll": 0.5},
                "after": {"ece": 3.0, "nll": 0.4},
            },
        },
    } | changes


def test_an_export_writes_a_card_with_the_figures_of_its_record(exported: Exported) -> None:
    text = (exported.path / CARD).read_text()
    found, rows = ModelCard(text), {r["role"]: r for r in read_json(exported.path / "deploy.json")["rows"]}
    assert found.data.pipeline_tag == "image-classification"
    (result,) = found.data.eval_results
    assert result.metric_value == pytest.approx(rows["int8"]["top1"] / 100, abs=1e-6)  # the file that is used
    assert f"| {rows['onnx']['top1']:.2f} |" in text
    assert "against the teacher in PyTorch" in text
    assert str(exported.path.parent) not in text


def test_the_card_has_figures_intervals_and_licences() -> None:
    text = str(card(MANIFEST, record()))
    low, high = beta.ppf(0.025, 179, 22), beta.ppf(0.975, 180, 21)  # the definition of Clopper and Pearson
    assert (
        f"| `model-int8.xml` | 1.50 | 2.00 | 89.50 | {100 * low:.2f} to {100 * high:.2f} | -0.50 (-1.50"
        in text
    )
    assert "| the labels-only control | +2.00 (+1.00 to +3.00) | 200 |" in text
    assert "temperature 1.25 " in text
    assert "| with it | 3.00 | 0.400 |" in text
    assert "`resnet18`: cc-by-nc-4.0. Its licence may restrict" in text
    assert "started from `test_efficientnet@none`: random weights." in text
    assert r"2 classes: cat, dog \| \<b\>." in text
    assert "/home" not in text
    assert ModelCard(text).data.license is None  # a student's licence is its maker's to state


def test_the_licence_of_a_named_model_is_that_of_its_weights() -> None:
    named = replace(MANIFEST, provenance={"weights": "hub timm/x", "licence": "apache-2.0"})
    found = card(named, record(run={}))
    assert found.data.license == "apache-2.0"
    assert "What distillation gained" not in str(found)
    assert "knowledge-distillation" not in found.data.tags


def test_rejected_files_and_unmeasured_accuracies_are_not_in_the_card() -> None:
    rejected = {check["file"]: "worse" for check in record()["checks"]}
    none = str(card(MANIFEST, record(rejected=rejected)))
    assert "No file passed the checks" in none
    assert "model-index" not in none
    plain = record(rows=[row("", top1=None), row("onnx", top1=None), row("openvino", top1=None)])
    plain["checks"] = plain["checks"][:2]
    text = str(card(MANIFEST, plain))
    assert "no accuracy was measured" in text
    assert "top-1, %" not in text


def test_a_readme_of_the_user_is_kept(tmp_path: Path) -> None:
    write_card(tmp_path, MANIFEST, record())
    assert MARK in (tmp_path / CARD).read_text()
    write_card(tmp_path, replace(MANIFEST, temperature=2.0), record())  # its own is made again
    assert "temperature 2 " in (tmp_path / CARD).read_text()
    (tmp_path / CARD).write_text("my notes\n")
    write_card(tmp_path, MANIFEST, record())
    assert (tmp_path / CARD).read_text() == "my notes\n"


def test_the_exact_interval_covers_at_least_its_level() -> None:
    """Over all counts of 40 images, for several true shares."""
    n = 40
    intervals = [exact_interval(hits, n) for hits in range(n + 1)]
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.9, 0.97):
        hits = rng.binomial(n, share, 4000)
        covered = np.mean([intervals[h][0] <= share <= intervals[h][1] for h in hits])
        assert covered >= 0.945, share
