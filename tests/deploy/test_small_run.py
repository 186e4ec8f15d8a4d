"""A run on almost no images, with its deployed files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.cli import main
from tutelage.core.files import read_json
from tutelage.core.run_dir import Run
from tutelage.pipeline.verify import verify


def test_a_run_on_seven_images_ends_with_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three classes. The verdict claims nothing, and int8 is calibrated on the few images that there are."""
    pytest.importorskip("nncf")
    rng = np.random.default_rng(0)
    for name, count in {"a": 3, "b": 2, "c": 2}.items():
        (tmp_path / "seven" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "seven" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    words = ["--teacher", "test_resnet@none", "--student", "test_efficientnet@none", "--data", "seven"]
    words += ["--name", "run", "--epochs", "1", "--progress", "none", "--export"]
    words += ["teacher.resolution=32", "student.resolution=32", "train.batch_size=2", "data.workers=0"]
    with pytest.raises(SystemExit) as ended:
        main(["distill", *words, "preflight.allow_weak_teacher=true", "train.precision=fp32"])
    assert not ended.value.code
    run = Run(tmp_path / "runs" / "run")
    assert read_json(run.comparison)["verdict"]["outcome"] == "not significantly different"
    assert run.report.stat().st_size > 100_000
    assert verify(run).ok
    written = {path.name for path in run.deploy.rglob("*")}
    assert {"model.onnx", "model.xml", "model-int8.xml", "model-int8.onnx", "labels.txt"} <= written
    assert read_json(run.deploy / "deploy.json")["missing"] == {}
    temperature = read_json(run.comparison)["calibration"]["temperature"]
    assert temperature != 1
    assert read_json(run.deploy / "preprocess.json")["temperature"] == temperature
