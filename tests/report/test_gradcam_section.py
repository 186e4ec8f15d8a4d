"""`tutelage report RUN --explain`: pictures of teacher and student on changed images, which later pages keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.models.registry import architecture
from tutelage.pipeline import explain
from tutelage.pipeline.run import begin, distill
from tutelage.report.run_records import read_run_records
from tutelage.report.sections.gradcam import gradcam_sections


def command(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, words)])
    return int(ended.value.code or 0)


def shown(run: Run) -> str:
    return "".join(str(section.html) for section in gradcam_sections(read_run_records(run)))


def test_pictures_are_made_on_request_and_kept(
    tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(tiny)
    run = begin(recipe, tmp_path, "run")
    assert command(run.path, "--explain") == 2
    assert "has no evaluation on labelled test images yet" in capsys.readouterr().err
    distill(recipe, run, Silent())
    assert shown(run) == ""
    assert command(run.path, "--explain") == 0
    with np.load(run.heat_maps) as file:
        ids = file["ids"].tolist()
        assert len(ids) > 0
        assert file["teacher"].shape == file["distilled"].shape == (len(ids), 128, 128, 3)
    html = shown(run)
    for name in ids:
        assert f'"Grad-CAM of the teacher for {name}"' in html
        assert f'"Grad-CAM of the distilled student for {name}"' in html
    assert command(run.path) == 0
    assert 'id="gradcam"' in run.report.read_text(encoding="utf-8")  # without --explain too
    assert command(run.path, run.path, "--explain") == 2
    assert "name one run" in capsys.readouterr().err

    real = explain.heat_maps

    def only_students(model: explain.Model, images: object) -> object:
        if model.spec.startswith(architecture(recipe.teacher.model)):
            raise TutelageError(f"{model.name}: no grid")
        return real(model, images)  # type: ignore[arg-type]

    monkeypatch.setattr(explain, "heat_maps", only_students)
    assert command(run.path, "--explain") == 0
    assert "no Grad-CAM of the teacher: test_resnet: no grid" in capsys.readouterr().out
    html = shown(run)
    assert "No pictures of this model. Teacher: test_resnet: no grid" in html
    assert "Grad-CAM of the teacher for" not in html
    assert "Grad-CAM of the distilled student for" in html
    run.heat_maps.write_bytes(b"PK damaged")
    assert "The pictures cannot be shown" in shown(run)
