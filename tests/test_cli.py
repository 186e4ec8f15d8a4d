"""The command line as a user runs it: bad input is one line on stderr and exit code 2."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.cli import main

TINY_FLAGS = [
    "teacher.resolution=32", "student.resolution=32", "preflight.allow_weak_teacher=true", "data.workers=0",
    "train.precision=fp32", "train.epochs=1", "train.batch_size=8", "teacher.fit={epochs: 1}",
]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command is refused with; its exit code is 2 and nothing else is on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def distil(tmp_path: Path, *words: str) -> list[str]:
    return ["distill", *TINY_FLAGS, "--runs", str(tmp_path / "runs"), "--progress", "none", *words]


def folder(place: Path, classes: dict[str, int]) -> Path:
    """Images of noise in class folders."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")
    return place


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tutelage {metadata.version('tutelage')}\n"


def test_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--teacher", "efficientvit_b11", "--student", "test_vit@none"), capsys)
    assert "efficientvit_b11" in line
    assert "did you mean 'efficientvit_b1'" in line


def test_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'temperature'" in refused(distil(tmp_path, "loss.temprature=2"), capsys)


def test_unknown_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--teacher", "test_resnet@none", "--student", "test_vit@none", "loss.name=kll", "data.limit=100"]
    assert "did you mean kl" in refused(distil(tmp_path, *words), capsys)


def test_missing_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such recipe" in refused(["distill", str(tmp_path / "nothing.yaml")], capsys)


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--data", f"folder:{tmp_path / 'nothing'}"), capsys)
    assert str(tmp_path / "nothing") in line


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(distil(tmp_path, "--data", f"folder:{tmp_path / 'empty'}"), capsys)


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path / "one", {"cat": 20})
    assert "one class only" in refused(distil(tmp_path, "--data", f"folder:{place}"), capsys)


def test_images_that_cannot_be_decoded_stop_the_run_at_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path / "bad", {"cat": 30, "dog": 30})
    for number in range(8):
        (place / "cat" / f"{number}.png").write_bytes(b"no picture")
    words = ["--data", f"folder:{place}", "--teacher", "test_resnet@none", "--student", "test_vit@none"]
    line = refused(distil(tmp_path, *words, "data.max_bad_images=3"), capsys)
    assert "data.max_bad_images=3" in line
    assert ".png" in line


def test_teacher_and_student_with_different_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both heads cover the data, but they are not the same head."""
    from tutelage.models.registry import load_model
    from tutelage.models.weights import save_weights

    names = ["cat", "dog", "cow"]
    files = []
    for model, classes in (("test_resnet", names), ("test_vit", names[::-1])):
        one = load_model(f"{model}@none").with_head(classes)
        save_weights(one.module, tmp_path / f"{model}.safetensors", one.metadata())
        files.append(f"{model}@{tmp_path / model}.safetensors")
    place = folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    words = ["--data", f"folder:{place}", "--teacher", files[0], "--student", files[1]]
    assert "must speak of the same classes" in refused(distil(tmp_path, *words), capsys)


def test_unreachable_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--teacher", "resnet18", "--student", "test_vit@none"), capsys)
    assert "resnet18" in line
    assert "hub" in line


def test_checkpoint_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tutelage.models.registry import load_model
    from tutelage.models.weights import save_weights

    path = tmp_path / "other.safetensors"
    save_weights(load_model("test_resnet@none").module, path, {})
    line = refused(distil(tmp_path, "--teacher", f"test_vit@{path}", "--student", "test_vit@none"), capsys)
    assert "other.safetensors" in line
    assert "missing" in line


def test_run_names_that_are_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a path" in refused(distil(tmp_path, "--name", "../outside"), capsys)


def test_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run directory" in refused(["resume", str(tmp_path)], capsys)


def test_an_existing_run_directory_is_refused_or_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    kept = tmp_path / "runs" / "mine" / "thing"
    kept.write_text("precious")
    assert "tutelage resume" in refused(distil(tmp_path, "--name", "mine"), capsys)
    assert kept.read_text() == "precious"


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tutelage.core import files as run_module

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module.os, "fsync", full)
    line = refused(distil(tmp_path, "--name", "full", "--teacher", "test_resnet@none"), capsys)
    assert "No space left" in line
    assert not [p for p in (tmp_path / "runs" / "full").rglob("*") if p.is_file()]


def test_wrong_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*distil(tmp_path)[:-2], "--progress", "loud", "--teacher", "test_resnet@none"]
    assert "--progress loud" in refused(words, capsys)


def test_distil_as_a_user_runs_it(tmp_path: Path) -> None:
    """A process of its own, JSON lines on standard output, the table at the end."""
    import json

    words = distil(tmp_path, "--teacher", "test_resnet@none", "--student", "test_vit@none", "--name", "mine")
    words[words.index("none", words.index("--progress"))] = "json"
    words.append("--watch")
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", *words, "data.limit=160"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    table = next(event for event in events if event["event"] == "table")
    assert [row["role"] for row in table["rows"]] == ["teacher", "start", "control", "distilled"]
    assert (tmp_path / "runs" / "mine" / "student.safetensors").is_file()
