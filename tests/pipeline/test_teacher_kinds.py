"""Runs whose teacher or student is not one of timm's models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.helpers.clip_files import write_clip
from tests.helpers.command_line import call
from tests.helpers.onnx_files import write_onnx
from tests.helpers.score_files import answers_of, write_csv
from tests.helpers.stages import StopAt
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.input_spec import eval_pixels, normalised
from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.distillation.stop import Interrupted
from tutelage.models.kinds.onnx import OnnxEngine
from tutelage.models.registry import load_model
from tutelage.pipeline.run import begin, distill
from tutelage.report.run_records import read_run_records
from tutelage.report.summary import summary


def run_of(tiny: dict, root: Path, name: str) -> Run:
    recipe = parse_recipe({**tiny, "name": name})
    run = begin(recipe, root, "test")
    distill(recipe, run, Silent())
    return run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a teacher that has learned the digits."""
    from tests.conftest import TINY

    tiny = {**TINY, "control": False, "targets": {"mode": "cached"}}
    tiny["teacher"] = {**TINY["teacher"], "fit": {"epochs": 8, "lr": 1e-2}}
    return run_of(tiny, tmp_path_factory.mktemp("runs"), "live")


def test_an_onnx_teacher_is_the_model_that_it_was_made_of(
    fitted: Run, tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets are cached, and agree with the model's to 1e-3; a student learns the same from both."""
    live = load_model(f"test_resnet@{fitted.teacher}")
    described = {"input": json.dumps(live.input_spec.to_dict())}  # as files of tutelage have it
    path = write_onnx(live.module, tmp_path / "teacher.onnx", torch.zeros(1, 3, 32, 32), described)
    assert load_model(f"onnx:{path}").input_spec == live.input_spec
    tiny |= {"control": False, "targets": {"mode": "cached"}}
    tiny["student"] = {
        "model": f"test_efficientnet@{fitted.student}"
    }  # random weights depend on what was drawn before
    tiny["teacher"] = {"model": f"test_resnet@{fitted.teacher}"}
    run_of(tiny, tmp_path, "of-the-model")
    tiny["teacher"] = {"model": f"onnx:{path}"}
    run_of(tiny, tmp_path, "of-the-file")
    records = [read_json(Run(tmp_path / name).preflight) for name in ("of-the-model", "of-the-file")]
    tops = [record["teacher"]["val"]["nll"] for record in records]
    assert tops[0] == pytest.approx(tops[1], abs=1e-3)
    rows = [read_json(Run(tmp_path / name).comparison)["rows"] for name in ("of-the-model", "of-the-file")]
    assert rows[0][-1]["nll"] == pytest.approx(rows[1][-1]["nll"], abs=1e-2)


def test_a_second_run_reads_the_targets_that_an_onnx_teacher_gave_the_first(
    fitted: Run, tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file runs on none of its training views; without the shared folder it runs on all of them again."""
    live = load_model(f"test_resnet@{fitted.teacher}")
    path = write_onnx(live.module, tmp_path / "teacher.onnx", torch.zeros(1, 3, 32, 32))
    seen = 0
    original = OnnxEngine.run

    def counted(self: OnnxEngine, images: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen += len(images)
        return original(self, images)

    monkeypatch.setattr(OnnxEngine, "run", counted)
    tiny |= {"control": False, "teacher": {"model": f"onnx:{path}"}}

    def images_of(name: str, place: Path) -> tuple[int, float]:
        nonlocal seen
        seen = 0
        tiny["targets"] = {"mode": "cached", "directory": str(place)}
        run = run_of(tiny, tmp_path, name)
        return seen, read_json(run.comparison)["rows"][-1]["nll"]

    first, again, elsewhere = (
        images_of(name, tmp_path / place)
        for name, place in (("first", "shared"), ("again", "shared"), ("elsewhere", "other"))
    )
    assert list((tmp_path / "shared/targets").glob("*/view-*.rows"))
    views = 2 * read_json(Run(tmp_path / "first").splits)["parts"]["train"]["size"]  # one in each epoch
    assert first[0] - again[0] == views
    assert elsewhere == first
    assert again[1] == first[1]


def test_a_file_cannot_be_a_student(fitted: Run, tiny: dict, tmp_path: Path) -> None:
    live = load_model(f"test_resnet@{fitted.teacher}")
    path = write_onnx(live.module, tmp_path / "model.onnx", torch.zeros(1, 3, 32, 32))
    tiny["student"] = {"model": f"onnx:{path}"}
    with pytest.raises(TutelageError, match="can only be a teacher"):
        run_of(tiny, tmp_path, "refused")


@pytest.mark.parametrize("fit", [{"epochs": 1}, {"lr": 0.1}])
def test_a_file_is_not_fitted(fit: dict, fitted: Run, tiny: dict, tmp_path: Path) -> None:
    live = load_model(f"test_resnet@{fitted.teacher}")
    path = write_onnx(live.module, tmp_path / "model.onnx", torch.zeros(1, 3, 32, 32))
    tiny["teacher"] = {"model": f"onnx:{path}", "fit": fit}
    with pytest.raises(TutelageError, match=r"no weights that can be trained; leave teacher\.fit out"):
        run_of(tiny, tmp_path, "refused")


def test_a_student_of_torchvision(tiny: dict, tmp_path: Path) -> None:
    """It is distilled; its file comes back by its name."""
    tiny["student"] = {"model": "torchvision:shufflenet_v2_x0_5@none", "resolution": 32, "crop_pct": 1.0}
    tiny["teacher"] |= {"model": "torchvision:squeezenet1_1@none", "resolution": 64}
    run = run_of(tiny, tmp_path, "theirs")
    roles = [row["role"] for row in read_json(run.comparison)["rows"]]
    assert roles == ["teacher", "start", "control", "distilled"]
    student = load_model(f"torchvision:shufflenet_v2_x0_5@{run.student}")
    assert student.class_ids == tuple("0123456789")
    assert student.input_spec.height == 32


def test_a_zero_shot_teacher_of_images_without_labels(tiny: dict, tmp_path: Path) -> None:
    """Its classes are listed in a file; the student gets them."""
    for number in range(60):
        place = tmp_path / "photos" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number * 4, 90, 250 - number * 4)).save(place)
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\n")
    tiny["data"] = {"train": f"folder:{tmp_path / 'photos'}", "workers": 0}
    tiny["teacher"] = {
        "model": f"zero-shot:{write_clip(tmp_path / 'clip')}?classes={tmp_path / 'classes.txt'}"
    }
    tiny |= {"loss": {"weight": 1.0}, "train": {**tiny["train"], "batch_size": 8}}
    run = run_of(tiny, tmp_path, "unlabelled")
    assert load_model(f"test_efficientnet@{run.student}").class_ids == ("owl", "cat", "dog")


def test_a_zero_shot_teacher_of_the_datas_classes(tiny: dict, tmp_path: Path) -> None:
    """Its head is made of their names, and is not fitted; it can only be a teacher."""
    folder = write_clip(tmp_path / "clip")
    tiny |= {"control": False, "teacher": {"model": f"zero-shot:{folder}"}, "targets": {"mode": "cached"}}
    run = run_of(tiny, tmp_path, "named")
    rows = read_json(run.comparison)["rows"]
    assert [row["role"] for row in rows] == ["teacher", "start", "distilled"]
    assert load_model(f"test_efficientnet@{run.student}").class_ids == tuple("0123456789")
    tiny["student"] = {"model": f"zero-shot:{folder}"}
    with pytest.raises(TutelageError, match="can only be a teacher"):
        run_of(tiny, tmp_path, "refused")


def test_a_predictions_file_reproduces_the_live_teachers_run_on_whole_images(
    fitted: Run, tiny: dict, tmp_path: Path
) -> None:
    """The same losses and figures; a stored teacher has no costs, and the page says what it is."""
    live = load_model(f"test_resnet@{fitted.teacher}")
    names, logits = answers_of(live, whole(open_source("digits")))
    path = tmp_path / "scores.npz"
    np.savez(path, images=np.array(names), classes=np.array(live.class_ids), logits=logits.numpy())
    tiny |= {"control": False, "view": {"crop_scale": [1.0, 1.0], "flip": 0.0}}
    tiny["student"] = {"model": f"test_efficientnet@{fitted.student}", "head_fit": "no"}
    tiny["teacher"] = {"model": f"test_resnet@{fitted.teacher}", "fit": "no"}
    seen = run_of(tiny, tmp_path, "live")
    tiny["teacher"] = {"model": f"predictions:{path}"}
    stored = run_of(tiny, tmp_path, "stored")
    for row, other in zip(read_jsonl(seen.metrics), read_jsonl(stored.metrics), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert other["val"]["nll"] == pytest.approx(row["val"]["nll"], rel=1e-3)
    rows = [read_json(run.comparison)["rows"] for run in (seen, stored)]
    assert rows[1][0]["top1"] == rows[0][0]["top1"]
    assert rows[1][-1]["nll"] == pytest.approx(rows[0][-1]["nll"], rel=1e-3)
    assert [rows[1][0][key] for key in ("size_mb", "params_m", "gmacs", "latency_ms", "images_per_s")] == [
        None
    ] * 5
    assert rows[1][1]["latency_ms"] > 0
    found = summary(read_run_records(stored))
    assert found is not None
    assert "than the teacher" not in found.gains
    page = stored.report.read_text()
    assert "all augmented views of an image have the same target" in page
    assert "at 8 px" not in page


def test_images_without_an_answer_are_counted_and_named(fitted: Run, tiny: dict, tmp_path: Path) -> None:
    live = load_model(f"test_resnet@{fitted.teacher}")
    names, logits = answers_of(live, whole(open_source("digits")))
    path = write_csv(tmp_path / "scores.csv", names[:1700], live.class_ids or (), logits[:1700].numpy())
    tiny["teacher"] = {"model": f"predictions:{path}"}
    del tiny["data"]["limit"]
    with pytest.raises(
        TutelageError, match=r"no row for 97 of the run's 1,797 images \(.* of train.*digit-1"
    ) as error:
        run_of(tiny, tmp_path, "refused")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"view": {"mixup": 0.8}}, "view.mixup=0.8"),
        ({"targets": {"flip": True}}, "targets.flip"),
        ({"teacher": {"resolution": 32}}, "teacher.resolution=32"),
        ({"teacher": {"fit": "probe"}}, "cannot be fitted"),
        ({"loss": {"terms": [{"feature_mse": {"student": "stages.1", "teacher": "stages.1"}}]}}, "stages.1"),
    ],
)
def test_what_stored_answers_cannot_do_is_refused(
    tiny: dict, tmp_path: Path, change: dict, named: str
) -> None:
    images = whole(open_source("digits"))
    path = write_csv(
        tmp_path / "s.csv", images.ids, images.classes, np.random.default_rng(0).normal(size=(1797, 10))
    )
    model = {"teacher": {"model": f"predictions:{path}"}}
    tiny |= model | change
    tiny["teacher"] = model["teacher"] | change.get("teacher", {})
    with pytest.raises(TutelageError, match=named):
        run_of(tiny, tmp_path, "refused")


def test_a_backbone_without_a_head_teaches_by_its_probe(tiny: dict, tmp_path: Path) -> None:
    """As a self-supervised one of timm, whose checkpoint has no head; other teachers' targets are the probe's."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), tmp_path / "backbone.safetensors")
    tiny["teacher"] |= {"model": f"test_resnet@{tmp_path / 'backbone.safetensors'}", "fit": "probe"}
    run = run_of({**tiny, "control": False}, tmp_path, "probed")
    rows = read_json(run.comparison)["rows"]
    assert rows[0]["is_probe"]
    assert rows[0]["top1"] > 20
    assert load_model(f"test_efficientnet@{run.student}").class_ids == tuple("0123456789")


@pytest.mark.parametrize("kind", ["torchvision", "hf"])
def test_a_student_of_another_library_is_resumed_exported_and_predicts(
    kind: str, tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped ends with the weights of one that was not; its file answers as the student does."""
    pytest.importorskip("openvino")
    if kind == "hf":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
        torch.manual_seed(0)
        ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    name = f"hf:{tmp_path / 'model'}" if kind == "hf" else "torchvision:squeezenet1_1"
    tiny |= {"control": False, "student": {"model": f"{name}@none", "resolution": 32, "crop_pct": 1.0}}
    whole_run = run_of(tiny, tmp_path, "whole")
    recipe = parse_recipe({**tiny, "name": "stopped"})
    run = begin(recipe, tmp_path, "test")
    with pytest.raises(Interrupted):
        distill(recipe, run, StopAt(14))
    assert not run.student.exists()
    assert call("resume", str(run.path), "--progress", "none") == 0
    resumed, other = load_file(run.student), load_file(whole_run.student)
    assert all(torch.equal(tensor, other[key]) for key, tensor in resumed.items())
    assert call("export", str(run.path), "--no-int8") == 0
    image = open_source("digits").image(0).resize((64, 64))
    image.save(tmp_path / "digit.png")
    capsys.readouterr()
    assert call("predict", str(run.path), str(tmp_path / "digit.png"), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    student = load_model(f"{name}@{run.student}")
    images = torch.from_numpy(normalised(eval_pixels(image, student.input_spec), student.input_spec))[None]
    with torch.no_grad():
        expected = student.module(images).argmax(1)
    assert answer["guesses"][0]["label"] == str(int(expected))
