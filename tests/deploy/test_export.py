"""The deployed directory: what is in it, what was checked, and what happens to a file that fails."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from tests.deploy.conftest import DATA, Exported
from torch import nn

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json, write_text
from tutelage.core.recipe import ExportRecipe, Recipe, dump_recipe
from tutelage.core.run_dir import Run
from tutelage.data.duplicates import Copies
from tutelage.data.input_spec import InputSpec, normalised
from tutelage.data.loading import eval_loader, normalise
from tutelage.data.sources.synthetic import Synthetic
from tutelage.deploy import build as build_module
from tutelage.deploy import export
from tutelage.deploy import parity as parity_module
from tutelage.deploy.bench import images_of
from tutelage.deploy.build import Deployed, head_labels
from tutelage.deploy.command import export_run, with_files
from tutelage.deploy.compare import compare_deployed
from tutelage.deploy.convert import save_onnx, save_openvino, to_onnx, to_openvino
from tutelage.deploy.export import export_model
from tutelage.deploy.formats.making import require
from tutelage.deploy.formats.registry import MAKERS
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.parity import Parity, complaint
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.quantise import Pictures, Quantiser
from tutelage.deploy.runtimes.openvino import openvino_core
from tutelage.deploy.runtimes.registry import RUNTIMES, VARIANTS, open_session
from tutelage.evaluation.table import Row, Table
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.quickstart import example, quickstart_recipe, write_example

FILES = {"model.onnx", "model-int8.onnx", "model.xml", "model.bin", "model-int8.xml", "model-int8.bin"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


# --- what is written


def test_the_directory_is_whole_and_nothing_stands_beside_it(exported: Exported) -> None:
    assert names(exported.path) == FILES | {"labels.txt", "preprocess.json", "deploy.json", "README.md"}
    assert names(exported.path.parent) == {"deploy", "student.safetensors", "teacher.safetensors"}
    assert exported.report.rejected == {}


def test_files_carry_their_card_and_no_path_of_this_machine(exported: Exported) -> None:
    manifest = Manifest.read(exported.path)
    assert manifest.labels == manifest.class_ids == tuple("0123456789")
    assert manifest.input_spec == exported.model.input_spec
    assert manifest.provenance["run"] == "digits"
    assert manifest.provenance["weights"] == exported.model.origin
    for name in ("model.onnx", "model-int8.onnx"):
        session = onnxruntime.InferenceSession(exported.path / name)
        assert session.get_modelmeta().custom_metadata_map == manifest.properties()
        assert b"site-packages" not in (exported.path / name).read_bytes()
    for name in ("model.xml", "model-int8.xml"):
        model = openvino_core().read_model(exported.path / name)
        found = {key: model.get_rt_info(["tutelage", key]).value for key in manifest.properties()}
        assert found == manifest.properties()


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model-int8.xml", "model-int8.onnx"])
def test_any_batch_size_gives_the_same_logits(exported: Exported, name: str) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)
    whole = open_session(exported.path / name)(images)
    one = open_session(exported.path / name, batch=1)
    assert whole.shape == (5, 10)
    np.testing.assert_allclose(np.concatenate([one(image[None]) for image in images]), whole, atol=1e-4)


def test_logits_are_pytorchs(exported: Exported) -> None:
    spec, module = exported.model.input_spec, exported.model.module
    batch = next(iter(eval_loader(exported.splits.test, [spec], 60, 0)))
    images = normalise(batch["images"][0], spec)
    with torch.inference_mode():
        truth = module(images).numpy()
    for name in ("model.onnx", "model.xml"):
        np.testing.assert_allclose(open_session(exported.path / name)(images.numpy()), truth, atol=1e-3)


def test_int8_is_smaller_and_keeps_what_the_network_knows(exported: Exported) -> None:
    size = {name: (exported.path / name).stat().st_size for name in FILES}
    assert size["model-int8.bin"] < 0.35 * size["model.bin"]
    assert size["model-int8.onnx"] < 0.5 * size["model.onnx"]
    rows = {row.role: row for row in exported.report.rows}
    assert rows["onnx"].top1 is not None
    assert rows["int8"].top1 is not None
    assert rows["onnx"].top1 > 60
    assert rows["int8"].top1 >= rows["onnx"].top1 - 5


# --- what was measured


def test_the_record_has_rows_checks_and_factors_like_for_like(exported: Exported) -> None:
    record = json.loads((exported.path / "deploy.json").read_text())
    roles = [check["role"] for check in record["checks"]]
    assert roles == [v.role for v in VARIANTS if v.role in roles]  # bf16 where the CPU has it
    assert {"onnx", "openvino", "int8", "onnx-int8"} <= set(roles)
    by_name = {row["role"]: row for row in record["rows"]}
    assert list(by_name) == ["teacher", *(f"teacher {r}" for r in roles), "", *roles]
    mine, theirs, first = by_name["int8"], by_name["teacher int8"], by_name["teacher"]
    assert mine["like"]["size_mb"] == pytest.approx(theirs["size_mb"] / mine["size_mb"])
    assert mine["like"]["latency_ms"] == pytest.approx(theirs["latency_ms"] / mine["latency_ms"])
    assert mine["change"]["size_mb"] == pytest.approx(first["size_mb"] / mine["size_mb"])
    assert mine["like"]["size_mb"] < mine["change"]["size_mb"]
    assert mine["paired"]["n"] == mine["n"] == len(exported.splits.test)
    files = sum((exported.path / f"model-int8.{end}").stat().st_size for end in ("xml", "bin"))
    assert mine["size_mb"] == pytest.approx(files / 2**20)
    for one in record["checks"]:
        assert one["n"] == len(exported.splits.test)
        if one["role"] in {"onnx", "openvino"}:
            assert one["difference"] < 1e-3
            assert one["agreement"] == 100


def test_top1_of_the_float_files_is_pytorchs(exported: Exported) -> None:
    rows = {row.role: row for row in exported.report.table.rows}
    assert rows["onnx"].top1 == rows["openvino"].top1 == rows[""].top1


def test_what_is_reported_on_was_not_calibrated_on() -> None:
    material, test = images_of("digits")
    assert test is not None
    assert not set(material.calibration.ids) & set(test.ids)
    assert len(material.calibration) == 300
    assert len(test) == 1797 - 300
    assert np.bincount(material.calibration.labels).min() >= 28  # evenly over the classes
    again, _ = images_of("digits")
    assert again.calibration.digest() == material.calibration.digest()


def test_synthetic_pictures_are_the_same_each_time() -> None:
    first, second = (np.asarray(Synthetic(3).image(2)) for _ in range(2))
    assert (first == second).all()
    assert (first != np.asarray(Synthetic(3).image(1))).any()
    assert first.std() > 20


# --- what fails


EXACT, INT8, HALF = (next(v for v in VARIANTS if v.role == r) for r in ("onnx", "int8", "ncnn-fp16"))


@pytest.mark.parametrize(
    ("variant", "parity", "top1", "words"),
    [
        (EXACT, Parity(9e-4, 5, 100, 10), 90, ""),
        (EXACT, Parity(2e-3, 5, 100, 10), 90, "logits differ"),
        (EXACT, Parity(2e-3, 50, 100, 10), 90, ""),  # of large logits so much is rounding
        (EXACT, Parity(float("nan"), 5, 100, 10), 90, "not finite"),
        (INT8, Parity(3, 5, 99, 10), 89.1, ""),
        (INT8, Parity(3, 5, 99, 10), 88.9, "loses 1.10 points of top-1 against PyTorch on 10 images"),
        (INT8, Parity(3, 5, 99, 10), None, ""),  # random weights have no accuracy to lose
        (HALF, Parity(0.09, 5, 100, 10), 90, ""),
        (HALF, Parity(0.11, 5, 100, 10), 90, "at most 0.1 is allowed"),
        (HALF, Parity(0.019, 0.01, 100, 10), None, ""),  # of small logits so much is rounding
        (HALF, Parity(0.09, 5, 99, 10), 88.9, "loses 1.10 points"),
        (INT8, Parity(float("inf"), 5, 99, 10), None, "not finite"),
    ],
)  # fmt: skip
def test_limits(variant: object, parity: Parity, top1: float | None, words: str) -> None:
    before = Row("m", top1=None if top1 is None else 90.0, n=10)
    found = complaint(variant, parity, before, Row("m", top1=top1, n=10), 1.0)  # type: ignore[arg-type]
    assert found.startswith(words) if words == "" else words in found
    assert bool(found) == bool(words)


def test_a_file_that_fails_is_put_aside_and_the_command_says_so(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity_module, "TOLERANCE", 0.0)
    monkeypatch.setattr(parity_module, "RELATIVE", -1.0)
    out = tmp_path / "out"
    shutil.copytree(exported.path, out)
    code, _, err = run(capsys, "export", exported.spec, "--no-int8", "--data", "digits", "--out", str(out))
    assert code == 1
    assert "rejected/model.onnx: logits differ from PyTorch's by up to" in err
    assert names(out / "rejected") == {"model.onnx", "model.xml", "model.bin"}
    described = {"labels.txt", "preprocess.json", "deploy.json", "README.md"}
    assert names(out) == {"rejected"} | described  # no stale file either
    card = (out / "README.md").read_text()
    assert "No file passed the checks" in card
    assert "How to run it" not in card
    assert "logits differ" in json.loads((out / "deploy.json").read_text())["rejected"]["model.onnx"]
    assert run(capsys, "predict", str(out), "x.png")[::2] == (
        2,
        f"error: {out}: has no model file, and none for any runtime; export again\n",
    )


def test_an_export_that_breaks_leaves_the_old_files(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported.path, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def breaks(model: object, stage: Path, *_: object) -> None:
        (stage / "model.onnx").write_bytes(b"half")
        raise TutelageError("stop")

    monkeypatch.setattr(export, "build", breaks)
    with pytest.raises(TutelageError, match="stop"):
        export_model(exported.model, out, int8=False)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert names(tmp_path) == {"out"}


def test_pretrained_weights_are_not_calibrated_on_made_up_images(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="int8 needs images to calibrate on; name some with --data"):
        export_model(exported.model, tmp_path / "out")


def test_a_missing_package_is_named_with_the_remedy(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    code, _, err = run(
        capsys, "export", exported.spec, "--data", "digits", "--out", str(tmp_path / "out")
    )  # fmt: skip
    assert code == 2
    assert err.strip().splitlines()[-1] == (
        "error: exporting to ONNX needs nncf, which is not installed: run `pip install tutelage[deploy]`"
    )
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runs/nothing"], "runs/nothing: no such run directory"),
        (["test_efficientnett@none"], "did you mean 'test_efficientnet'?"),
        (["test_efficientnet@none", "--data", "folder:no/such"], "no/such"),
        (["test_efficientnet@none", "--max-drop", "-1"], "greater than or equal to 0"),
        (["test_efficientnet@none", "--no-int8", "--out", "/proc/no/out"], "/proc/no"),
    ],
)
def test_bad_arguments(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "export", *arguments)
    assert code == 2
    assert line in err
    assert "Traceback" not in err


# --- quantisation that looks at accuracy


class Fragile(torch.nn.Module):
    """Its int8 grid is spread by one huge channel, and what tells the classes apart falls between."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1)
        self.second = torch.nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.bias.zero_()
            self.first.weight[:3, :, 0, 0] = torch.eye(3)
            self.first.weight[3, :, 0, 0] = 4000.0
            self.second.weight.zero_()
            self.second.bias.zero_()
            self.second.weight[:3, :3, 0, 0] = torch.eye(3)
            self.second.weight[3, 3, 0, 0] = 1 / 4000 / 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(images))).mean((2, 3))


def test_layers_go_back_to_float_where_plain_int8_loses_too_much(tmp_path: Path) -> None:
    require(RUNTIMES[:2])
    spec = InputSpec(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    manifest = Manifest("fragile", spec, tuple("abcd"), tuple("abcd"))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    onnx = to_onnx(Fragile().eval(), spec)
    save_onnx(onnx, tmp_path / "model.onnx", manifest)
    model = to_openvino(tmp_path / "model.onnx")
    labels = open_session(tmp_path / "model.onnx")(normalised(pixels, spec)).argmax(1)
    pictures = Pictures(pixels, labels)
    shares = []
    for validation in (None, pictures):
        quantised = Quantiser(pictures, spec, validation, max_drop=1.0).openvino(model)
        save_openvino(quantised, tmp_path / "int8.xml", manifest)
        shares.append(
            (open_session(tmp_path / "int8.xml")(normalised(pixels, spec)).argmax(1) == labels).mean()
        )
    assert shares[0] < 0.9
    assert shares[1] >= 0.99


def digits_and_answers(
    net: torch.nn.Module, spec: InputSpec, tmp_path: Path
) -> tuple[object, object, Pictures]:
    """The ONNX and OpenVINO forms of a network, and images that it classifies without an error."""
    require(RUNTIMES[:2])
    pixels = np.random.default_rng(0).integers(0, 256, (40, spec.height, spec.width, 3), dtype=np.uint8)
    onnx = to_onnx(net.eval(), spec)
    save_onnx(onnx, tmp_path / "model.onnx", Manifest("net", spec, tuple("abcd"), tuple("abcd")))
    labels = open_session(tmp_path / "model.onnx")(normalised(pixels, spec)).argmax(1)
    return onnx, to_openvino(tmp_path / "model.onnx"), Pictures(pixels, labels)


def test_the_search_for_harmful_layers_is_bounded_and_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that never gets good enough costs one attempt a share, and none once the time is over."""
    spec = InputSpec(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    onnx, openvino_model, pictures = digits_and_answers(Fragile(), spec, tmp_path)
    attempts: list[int] = []
    plain = Quantiser._quantised

    def counted(self: Quantiser, model: object, form: str, kept: list[str]) -> object:
        attempts.append(len(kept))
        return plain(self, model, form, kept)

    monkeypatch.setattr(Quantiser, "_quantised", counted)
    monkeypatch.setattr(Quantiser, "_lost", lambda *_: 50.0)
    lines: list[str] = []
    quantiser = Quantiser(pictures, spec, pictures, 1.0, lines.append)
    quantiser.openvino(openvino_model)
    assert attempts == [0, 1, 1, 2]
    assert len(lines) == 4
    quantiser.onnx(onnx)
    assert attempts == [0, 1, 1, 2, 2]  # begins where the other form ended
    attempts.clear()
    monkeypatch.setattr("tutelage.deploy.quantise.SECONDS", -1.0)
    Quantiser(pictures, spec, pictures, 1.0).openvino(openvino_model)
    assert attempts == [0]


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_attempts_of_both_forms_share_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that takes longer than what is left is not begun."""
    spec = InputSpec(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    onnx, openvino_model, pictures = digits_and_answers(Fragile(), spec, tmp_path)
    attempts: list[int] = []
    clock = Clock()

    def slow(self: Quantiser, model: object, form: str, kept: list[str]) -> object:
        attempts.append(len(kept))
        clock.now += 25
        return model

    monkeypatch.setattr("tutelage.deploy.quantise.time", clock)
    monkeypatch.setattr(Quantiser, "_quantised", slow)
    monkeypatch.setattr(Quantiser, "_lost", lambda *_: 50.0)
    quantiser = Quantiser(pictures, spec, pictures, 1.0)
    quantiser.openvino(openvino_model)
    assert attempts == [0, 1, 1]  # 50 of 60 seconds are over
    quantiser.onnx(onnx)
    assert attempts == [0, 1, 1, 1]  # one is always made


def test_a_long_step_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = InputSpec(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    _, openvino_model, pictures = digits_and_answers(Depthwise(), spec, tmp_path)
    monkeypatch.setattr("tutelage.core.progress.EVERY", -1.0)
    Quantiser(pictures, spec, pictures, 100.0, print).openvino(openvino_model)
    lines = capsys.readouterr().out.splitlines()
    assert "OpenVINO: quantising to int8, 40 images read" in lines  # although NNCF's own output is hidden
    assert "OpenVINO: float32 on 32 of 40 images" in lines
    assert "OpenVINO: int8 on 40 of 40 images" in lines


# --- files that cannot be made


class Branching(torch.nn.Module):
    """Which way it goes depends on the images, so that no exporter can follow it."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))
        return self.head(pooled)


@pytest.mark.parametrize("why", ["it branches on data", "openvino fails"])
def test_a_teacher_that_cannot_be_exported_keeps_no_file_from_the_student(
    why: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Model.of(Branching(), input_spec=InputSpec(8, 8), name="branching")
    if why == "openvino fails":
        plain = build_module.build

        def fails(model: Model, *arguments: object, **more: object) -> Deployed:
            if model is teacher:
                raise RuntimeError("the runtime does not know this operator")
            return plain(model, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(export, "build", fails)
    lines: list[str] = []
    report = export_model(
        exported.model,
        tmp_path / "out",
        teacher=teacher,
        test=exported.splits.test,
        int8=False,
        say=lines.append,
    )
    assert {"model.onnx", "model.xml", "model.bin"} <= names(tmp_path / "out")
    (note,) = [line for line in report.table.notes if line.startswith("compared without the teacher's files")]
    assert note in lines
    assert "\n" not in note


@pytest.mark.parametrize(
    ("station", "missing"),
    [
        ("quantise.Quantiser.openvino", ["model-int8.xml"]),
        ("quantise.Quantiser.onnx", ["model-int8.onnx"]),
        ("formats.openvino.to_openvino", ["model.xml", "model-int8.xml"]),
    ],
)
def test_a_file_that_cannot_be_made_costs_no_other(
    station: str,
    missing: list[str],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("not\nimplemented")

    monkeypatch.setattr(f"tutelage.deploy.{station}", fails)
    out = tmp_path / "out"
    code, _, err = run(capsys, "export", exported.spec, "--data", "digits", "--out", str(out))
    assert code == 1
    every = {"model.onnx", "model-int8.onnx", "model.xml", "model-int8.xml"}
    assert {name for name in names(out) if name.endswith((".onnx", ".xml"))} == every - set(missing)
    told = [line for line in err.splitlines() if line.startswith(str(out))]
    assert told == [f"{out / missing[0]}: cannot be made (RuntimeError: not implemented)"]
    assert missing[0] in json.loads((out / "deploy.json").read_text())["missing"]


@pytest.mark.parametrize(
    ("chosen", "files"),
    [
        (["openvino"], {"model.xml", "model.bin"}),  # although it is made from an ONNX file
        (["onnx"], {"model.onnx"}),
        (["onnx", "openvino"], {"model.onnx", "model.xml", "model.bin"}),
    ],
)
def test_only_files_of_the_chosen_formats_are_written(
    chosen: list[str], files: set[str], exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [word for name in chosen for word in ("--format", name)]
    code, _, err = run(capsys, "export", exported.spec, "--out", str(out), "--no-int8", *words)
    assert code == 0, err
    assert names(out) == {*files, "labels.txt", "preprocess.json", "deploy.json", "README.md"}


def test_a_recipe_knows_the_formats_that_there_are() -> None:
    known = [runtime.format for runtime in RUNTIMES]
    assert list(get_args(get_args(ExportRecipe.model_fields["formats"].annotation)[0])) == known
    assert set(MAKERS) == set(known)


def test_an_unknown_format_is_refused_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(
        capsys, "export", "test_resnet@none", "--format", "tflight", "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert "format tflight: there is no such format; choose from onnx, openvino" in err
    assert not (tmp_path / "out").exists()


class Depthwise(torch.nn.Module):
    """What EfficientNet-Lite is made of: NNCF would give each channel of the depthwise layer's input its own scale."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.deep = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = torch.nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        deep = self.deep(torch.nn.functional.relu6(self.expand(images)))
        return self.head(torch.nn.functional.relu6(deep)).mean((2, 3))


def test_onnx_int8_of_depthwise_layers_runs_in_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = InputSpec(8, 8)
    onnx, _, pictures = digits_and_answers(Depthwise(), spec, tmp_path)
    quantised = Quantiser(pictures, spec).onnx(onnx)
    scales = {entry.name: list(entry.dims) for entry in quantised.graph.initializer}
    vectors = [n.name for n in quantised.graph.node if n.op_type == "QuantizeLinear" and scales[n.input[1]]]
    assert [name for name in vectors if scales.get(name, [1]) != [1] and "weight" not in name] == []
    save_onnx(quantised, tmp_path / "int8.onnx", Manifest("net", spec, tuple("abcd"), tuple("abcd")))
    assert open_session(tmp_path / "int8.onnx")(normalised(pictures.pixels, spec)).shape == (40, 4)


class Attention(torch.nn.Module):
    """Linear attention, as EfficientViT has it: products of activations, and a division by one."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Conv2d(3, 12, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(images).flatten(2).relu().chunk(3, 1)
        mixed = v @ (k.transpose(1, 2) @ q)
        return (mixed / (mixed[:, :1] + 1)).mean(2)


def test_products_of_activations_stay_in_float(tmp_path: Path) -> None:
    """In int8 OpenVINO computes them from memory that it never wrote."""
    require(RUNTIMES[:2])
    spec = InputSpec(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3)
    manifest = Manifest("attention", spec, tuple("abcd"), tuple("abcd"))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    onnx = to_onnx(Attention().eval(), spec)
    save_onnx(onnx, tmp_path / "model.onnx", manifest)
    pictures = Pictures(pixels, np.full(30, -1))
    quantised = Quantiser(pictures, spec).openvino(to_openvino(tmp_path / "model.onnx"))
    kinds = [
        [source.get_node().get_type_name() for source in operation.input_values()]
        for operation in quantised.get_ops()
        if operation.get_type_name() == "MatMul"
    ]
    assert len(kinds) == 2
    assert "FakeQuantize" not in {kind for pair in kinds for kind in pair}
    assert "FakeQuantize" in {operation.get_type_name() for operation in quantised.get_ops()}
    graph = Quantiser(pictures, spec).onnx(onnx).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    assert "DequantizeLinear" not in {made_by[name] for node in products for name in node.input}
    assert "DequantizeLinear" in made_by.values()


# --- runs, and models side by side


def test_a_runs_table_gains_its_files(exported: Exported, tmp_path: Path) -> None:
    run_ = Run.create(tmp_path, "digits")
    recipe = Recipe.model_validate(
        {
            "teacher": exported.teacher,
            "student": "test_efficientnet@none",
            "data": DATA.model_dump(),
            "export": {"int8": False},
        }
    )
    write_text(run_.recipe, dump_recipe(recipe))
    shutil.copy(exported.spec.partition("@")[2], run_.student)
    write_json(run_.preflight, {"teacher": {"resolution": 32}})
    old = [
        Row(exported.teacher, "teacher", resolution=32, params_m=0.1, conditions={"device": "cpu"}),
        Row("s", "distilled", resolution=32, params_m=None, latency_ms=1e9, conditions={"device": "cuda"}),
        Row("model.xml", "openvino"),  # of an earlier export
    ]
    write_json(run_.comparison, {"rows": Table(old).records(), "verdict": {"sentence": "kept"}})
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run_.path), "--teacher"])
    assert not ended.value.code
    content = json.loads(run_.comparison.read_text())
    assert content["rows"][-1]["paired"]["n"] == len(
        exported.splits.test
    )  # against the teacher, the first row
    roles = [row["role"] for row in content["rows"]]
    assert content["verdict"] == {"sentence": "kept"}
    assert roles[:3] == ["teacher", "distilled", "onnx"]
    assert roles.count("openvino") == 1
    rows = dict(zip(roles, content["rows"], strict=True))
    assert rows["distilled"]["latency_ms"] == 1e9  # timed elsewhere
    assert rows["onnx"]["like"]["size_mb"] > 0
    assert rows["onnx"]["n"] == len(exported.splits.test)
    assert run_.digests.is_file()
    assert Manifest.read(run_.deploy).provenance["run"] == "digits"


def test_an_interval_against_the_student_does_not_stand_beside_a_change_against_the_teacher(
    exported: Exported, tmp_path: Path
) -> None:
    report = export_model(exported.model, tmp_path / "a", test=exported.splits.test, int8=False)
    assert all(row.paired for row in report.rows)  # deploy.json has what it cost to leave PyTorch
    run_rows = [Row("t", "teacher", top1=90.0), Row("s", "distilled", top1=80.0)]
    files = [row for row in with_files(run_rows, report) if row.role not in {"teacher", "distilled"}]
    assert len(files) == len(report.rows)
    assert not any(row.paired for row in files)


def test_the_terminal_has_a_line_for_pytorch_and_one_for_each_file(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    code, text, _ = run(capsys, "export", exported.spec, "--no-int8", "--data", "digits", "--out", str(out))
    assert code == 0
    head, pytorch, *files, last = [line for line in text.splitlines() if line.strip()]
    assert head.split() == ["size", "latency", "top-1", "same", "class"]
    row, *others = json.loads((out / "deploy.json").read_text())["rows"]
    size, latency = f"{row['size_mb']:.2f}", f"{row['latency_ms']:.2f}"
    assert pytorch.split() == ["PyTorch", size, "MiB", latency, "ms", f"{row['top1']:.2f}%"]
    shown = [line for line in files if line.startswith("model")]
    assert len(shown) == len(others)
    assert [line.split()[-1] for line in shown] == ["ok"] * len(others)
    assert [line.split()[0] for line in shown][:2] == ["model.onnx", "model.xml"]
    assert str(out / "deploy.json") in last.replace("\n", "")


def test_a_quickstart_ends_with_a_prediction_by_its_file(exported: Exported, tmp_path: Path) -> None:
    run_ = Run.create(tmp_path, "quickstart")
    assert example(run_, run_.deploy / "model.onnx") == ""  # nothing to predict
    write_example(run_, quickstart_recipe())
    assert example(run_, run_.student) == ""  # nothing was exported
    shutil.copytree(exported.path, run_.deploy)
    for name in ("model.onnx", "model.xml"):
        found = Predictor(run_.deploy)(run_.example, top=1)[0]
        line = example(run_, run_.deploy / name)
        assert line.startswith(f"example.png (a test image) is of class {found.label} (")
    (run_.deploy / "model.onnx").unlink()
    assert example(run_, run_.deploy / "model.onnx") == ""


def test_an_export_does_not_look_for_copies_again(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run has them in its record; to find them, the beginnings of all files are read."""
    run_ = Run.create(tmp_path, "digits")
    recipe = Recipe.model_validate({"student": "test_efficientnet@none", "data": DATA.model_dump()})
    write_text(run_.recipe, dump_recipe(recipe))
    shutil.copy(exported.spec.partition("@")[2], run_.student)
    write_json(run_.splits, exported.splits.record())
    monkeypatch.setattr(Copies, "find", lambda *_: pytest.fail("it looked for copies"))
    given: dict[str, Any] = {}
    report = export.DeployReport(run_.deploy, Table([]), (), "digits")

    def exported_as(*_: Any, **named: Any) -> export.DeployReport:
        given.update(named)
        return report

    monkeypatch.setattr("tutelage.deploy.command.export_model", exported_as)
    export_run(run_)
    assert given["calibration"].digest() == exported.splits.train.digest()


def test_a_run_is_exported_without_its_teacher_unless_asked(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a teacher that cannot be exported does not keep the student from its files."""
    built: list[str] = []
    plain = export.build

    def build(model: Model, *arguments: object, **named: object) -> object:
        built.append(model.name)
        if model.name == "test_resnet":
            raise TutelageError("test_resnet: cannot be exported to ONNX")
        return plain(model, *arguments, **named)

    monkeypatch.setattr(export, "build", build)
    report = export_model(exported.model, tmp_path / "a", test=exported.splits.test, int8=False)
    assert built == ["test_efficientnet"]
    assert report.table.rows[0].role == ""
    teacher = load_model(exported.teacher)
    report = export_model(
        exported.model, tmp_path / "b", test=exported.splits.test, teacher=teacher, int8=False
    )
    assert (tmp_path / "b" / "model.onnx").is_file()
    assert any("without the teacher's files: test_resnet" in note for note in report.table.notes)


def test_a_file_in_the_place_of_the_directory_is_refused_before_any_work(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(export, "build", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(TutelageError, match="this is a file"):
        export_model(exported.model, tmp_path / "out", int8=False)


def test_random_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    specs = ["test_resnet@none", "test_efficientnet@none"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *specs, "--deploy", "--batch-size", "2", "--json", str(out)])
    text = capsys.readouterr().out
    assert not ended.value.code
    rows = {row["model"]: row for row in json.loads(out.read_text())}
    small, big = rows["test_efficientnet@none int8"], rows["test_resnet@none int8"]
    assert small["like"]["size_mb"] == pytest.approx(big["size_mb"] / small["size_mb"])
    assert not big["like"]
    assert small["top1"] is None
    assert small["why"]["top1"] == "the weights are random (@none)"
    assert "its predictions mean NOTHING" in text
    assert "like for like" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(TutelageError, match="cuda"):
        compare_deployed(["test_efficientnet@none"], device="cuda")


def test_labels_are_matched_by_name(exported: Exported) -> None:
    subset = exported.splits.test
    assert (head_labels(exported.model, subset) == subset.labels).all()
    turned = load_model(exported.spec)
    object.__setattr__(turned, "class_ids", tuple("9876543210"))
    assert (head_labels(turned, subset) == 9 - subset.labels).all()
    object.__setattr__(turned, "class_ids", tuple("abcdefghij"))
    assert (head_labels(turned, subset) == -1).all()


def test_a_module_of_ones_own_is_exported(tmp_path: Path) -> None:
    """Its files give its logits; nothing in the export asks whose the module is."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    model = Model.of(net, input_spec=InputSpec(32, 32), name="net", class_ids=["ant", "bee", "cat"])
    report = export_model(model, tmp_path / "deploy", int8=False)
    assert not report.rejected
    assert {row.role for row in report.rows} >= {"onnx", "openvino"}
    manifest = Manifest.read(tmp_path / "deploy")
    assert (manifest.model, manifest.class_ids) == ("net", ("ant", "bee", "cat"))
