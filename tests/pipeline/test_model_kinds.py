"""A run of models that are not timm's, from a package that adds their kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.packages import install_example

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.models.registry import load_model
from tutelage.pipeline.run import begin, distill


def test_a_teacher_and_a_student_of_another_kind(
    tmp_path: Path, tiny: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are fitted, one is distilled, its head alone first, and its file comes back by its name."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    install_example("model_package", site)
    tiny["teacher"] |= {"model": "tinynet:16", "fit": {"epochs": 8, "lr": 1e-2}}
    tiny["student"] |= {"model": "tinynet:4", "dropout": 0.1}
    tiny["train"] |= {"head_warmup_epochs": 1, "layer_decay": 0.9, "l2_sp": 0.01}
    recipe = parse_recipe(tiny | {"name": "kinds"})
    run = begin(recipe, tmp_path, "test")
    distill(recipe, run, Silent())
    rows = read_json(run.comparison)["rows"]
    assert [row["role"] for row in rows] == ["teacher", "start", "control", "distilled"]
    assert rows[0]["top1"] > 30
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"teacher-fit", "control", "distill"}
    student = load_model(f"tinynet:4@{run.student}")
    assert student.class_ids == tuple("0123456789")
    stored = load_file(run.student)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in student.module.state_dict().items())
