"""Pre-flight names what is wrong with a teacher's input or with the order of its classes, and accuses no right one."""

from __future__ import annotations

import copy
import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.helpers.coloured import PX, coloured_digits, fitted_to
from tests.helpers.heard import Heard
from tests.helpers.onnx_files import Takes, write_onnx
from tests.helpers.score_files import answers_of, write_csv
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.recipe import parse_recipe
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import normalise
from tutelage.data.sources.base import open_source
from tutelage.data.subset import whole
from tutelage.evaluation import input_variants
from tutelage.evaluation.input_variants import DESCRIPTIONS, variants_of
from tutelage.models.registry import given, load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages import teacher_inputs
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare

SPEC = InputSpec(PX, PX, crop_pct=1.0)  # ImageNet's mean and std


RIGHT = "channels=BGR&range=[0,255]"  # how the file of these tests is described rightly


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return coloured_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def network(data: str) -> nn.Module:
    return fitted_to(data, SPEC)


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that wants its images as OpenCV reads them: BGR, pixels of 0 to 255."""
    takes = Takes(network, bgr=True, scale=1 / 255, mean=SPEC.mean, std=SPEC.std)
    return write_onnx(takes, tmp_path_factory.mktemp("file") / "teacher.onnx", torch.zeros(1, 3, PX, PX))


def recipe_tree(data: str, teacher: str | dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(TINY) | {"control": False, "name": "run"}
    tree["data"] = {"train": data, "val_fraction": 0.4, "test_fraction": 0.3, "workers": 0, "cache": False}
    tree["teacher"] = {"model": teacher, "crop_pct": 1.0} if isinstance(teacher, str) else teacher
    return tree


def checked(tree: dict[str, Any], root: Path) -> tuple[dict[str, Any], list[str]]:
    """What the pre-flight of a run records, and its warnings."""
    recipe, heard = parse_recipe(tree), Heard()
    run = begin(recipe, root, "test")
    prepared = prepare(recipe, run, heard)
    preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
    return read_json(run.preflight), heard.warnings


def of_descriptions(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [check for check in record["checks"] if "described rightly" in check["name"]]


def test_a_teacher_that_is_described_rightly_is_not_accused(data: str, file: Path, tmp_path: Path) -> None:
    record, warnings = checked(recipe_tree(data, f"onnx:{file}?{RIGHT}"), tmp_path)
    assert warnings == []
    assert [one["fault"] for one in record[DESCRIPTIONS]] == [None]
    assert record["teacher"]["val"]["top1"] < 95  # so that all was tried
    (check,) = of_descriptions(record)
    assert check["ok"]
    assert check["detail"] == (
        "8 other inputs and another order of its classes tried on val: none is clearly better"
    )


@pytest.mark.parametrize(
    ("settings", "words", "written"),
    [
        pytest.param(
            "range=[0,255]",
            "the channels in the order BGR",
            "range=[0,255]&channels=BGR",
            id="BGR",
        ),
        pytest.param(
            "channels=BGR&range=[0,1]",
            "pixels of 0 to 255 (mean 0, std 1)",
            "channels=BGR&range=[0,255]&mean=0&std=1",
            id="0 to 255",
        ),
        pytest.param(
            "channels=BGR&range=[0,255]&mean=64&std=200",
            "pixels of 0 to 255 (mean 0, std 1)",
            "channels=BGR&range=[0,255]&mean=0&std=1",
            id="mean",
        ),
        pytest.param(
            "size=32",
            "pixels of 0 to 255 (mean 0, std 1) and the channels in the order BGR",
            "size=32&channels=BGR&range=[0,255]&mean=0&std=1",
            id="BGR and 0 to 255",
        ),
    ],
)
def test_a_wrong_input_is_named_with_what_to_write_and_this_is_right(
    settings: str, words: str, written: str, data: str, file: Path, tmp_path: Path
) -> None:
    record, (warning,) = checked(recipe_tree(data, f"onnx:{file}?{settings}"), tmp_path / "wrong")
    (found,) = record[DESCRIPTIONS]
    assert (found["fault"], found["with"], found["write"]) == ("input", words, f"onnx:{file}?{written}")
    assert "it probably gets its images in another way than in its training" in warning
    assert (
        f"has {found['given']:.2f} top-1 as it is described, and {found['top1']:.2f} with {words}" in warning
    )
    assert warning.endswith(f"Write teacher.model='{found['write']}'")
    assert "\n" not in warning
    (check,) = of_descriptions(record)
    assert (check["ok"], f"warning: {check['detail']}") == (False, warning)
    mended, warnings = checked(recipe_tree(data, found["write"]), tmp_path / "mended")
    assert (warnings, mended[DESCRIPTIONS][0]["fault"]) == ([], None)
    assert mended["teacher"]["val"]["top1"] > 90 > record["teacher"]["val"]["top1"]


@pytest.mark.parametrize("settings", ["size=32", "channels=BGR&range=[0,255]&mean=[90,110,130]&std=60"])
def test_what_is_to_be_written_makes_the_input_that_was_tried(settings: str, file: Path) -> None:
    """Whatever the file is described as, and whichever input is tried."""
    model = load_model(f"onnx:{file}?{settings}")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, PX, PX), generator=generator, dtype=torch.uint8)
    tried = variants_of(model)
    assert len(tried) >= 8
    for variant in tried:
        written = teacher_inputs._renamed(model, variant)
        assert written is not None
        mended = load_model(written)
        network = input_variants._WithInput(model.module, model.input_spec, variant)
        expected = network(normalise(pixels, model.input_spec))
        found = mended.module(normalise(pixels, mended.input_spec))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, msg=variant.words)


def test_a_shuffled_list_of_classes_is_named_with_the_order_that_is_right(
    data: str, file: Path, tmp_path: Path
) -> None:
    right = sorted(one.name for one in Path(data.removeprefix("folder:")).iterdir())
    listed = tmp_path / "classes.txt"
    listed.write_text("\n".join(right[3:] + right[:3]))
    model = f"onnx:{file}?{RIGHT}&classes={listed}"
    record, (warning,) = checked(recipe_tree(data, model), tmp_path / "wrong")
    (found,) = record[DESCRIPTIONS]
    assert found["fault"] == "classes"
    assert found["outputs"] == {name: output for output, name in enumerate(right)}
    assert f"with its outputs in the order {', '.join(right)}. List its classes" in warning
    assert "its outputs probably have another order than the list of its classes" in warning
    listed.write_text("\n".join(right))
    mended, warnings = checked(recipe_tree(data, model), tmp_path / "mended")
    assert (warnings, mended[DESCRIPTIONS][0]["fault"]) == ([], None)


def test_stored_answers_with_columns_in_a_wrong_order_are_named(
    data: str, network: nn.Module, tmp_path: Path
) -> None:
    """Nothing but the order is looked at, since no network runs."""
    images = whole(open_source(data))
    names, logits = answers_of(Model.of(network, input_spec=SPEC), images)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    values, right = (logits + 2 * noise).numpy(), images.classes
    wrong = write_csv(tmp_path / "wrong.csv", names, right[3:] + right[:3], values)
    record, (warning,) = checked(recipe_tree(data, {"model": f"predictions:{wrong}"}), tmp_path / "wrong")
    assert record[DESCRIPTIONS][0]["outputs"] == {
        name: (place + 3) % 10 for place, name in enumerate(right)
    }  # the columns are taken in the order of the data's classes
    assert (
        "with the columns blue-0 for red-2, blue-1 for red-3, blue-2 for red-4, blue-3 for blue-0" in warning
    )
    assert warning.endswith("Check the names of its columns; if its list is right, the labels of val are not")
    stored = write_csv(tmp_path / "right.csv", names, right, values)
    record, warnings = checked(recipe_tree(data, {"model": f"predictions:{stored}"}), tmp_path / "right")
    assert (warnings, record[DESCRIPTIONS][0]["fault"]) == ([], None)
    (check,) = of_descriptions(record)
    assert check["detail"] == "another order of its classes tried on val: none is clearly better"


def test_a_run_that_is_refused_names_the_cause(data: str, file: Path, tmp_path: Path) -> None:
    tree = recipe_tree(data, f"onnx:{file}?range=[0,255]") | {"preflight": {}}
    with pytest.raises(TutelageError) as refused:
        checked(tree, tmp_path)
    line = str(refused.value)
    assert line.startswith("pre-flight: failed: teacher above chance (teacher top-1 ")
    assert f"Write teacher.model='onnx:{file}?range=[0,255]&channels=BGR', or set preflight" in line
    assert "teacher.fit" not in line


def test_a_run_goes_on_and_its_page_its_diagnosis_and_a_resume_say_it_again(
    data: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.pipeline.stages.measure.timed", lambda rows, *_, **__: list(rows))
    recipe = parse_recipe(recipe_tree(data, f"onnx:{file}?range=[0,255]"))
    run, first, again = begin(recipe, tmp_path, "test"), Heard(), Heard()
    distill(recipe, run, first)
    (warning,) = first.warnings
    (finding,) = [
        one for one in read_json(run.diagnosis)["findings"] if one["name"] == "teacher described wrongly"
    ]
    assert finding["severity"] == "problem"
    assert f"warning: {finding['sentence']}" == f"{warning}."
    assert finding["try"][0]["key"] == "teacher.model"
    assert finding["try"][0]["value"] == f"'onnx:{file}?range=[0,255]&channels=BGR'"
    page = html.unescape(run.report.read_text(encoding="utf-8"))
    checks = page[page.index("Checks before training") :]
    assert f"Teacher described rightly</span> (failed): {warning.removeprefix('warning: ')}" in checks
    run.comparison.unlink()
    distill(recipe, run, again)
    assert again.warnings == first.warnings


def test_each_of_several_teachers_is_tried_alone(data: str, file: Path, tmp_path: Path) -> None:
    teacher = {"model": f"onnx:{file}?{RIGHT}", "others": [f"onnx:{file}?range=[0,255]"], "crop_pct": 1.0}
    record, (warning,) = checked(recipe_tree(data, teacher), tmp_path)
    assert [(one["place"], one["fault"]) for one in record[DESCRIPTIONS]] == [(0, None), (1, "input")]
    assert warning.endswith(f"Write 'onnx:{file}?range=[0,255]&channels=BGR' in teacher.others")
    names = {check["name"]: check["ok"] for check in of_descriptions(record)}
    assert names == {
        f"onnx:{file}?{RIGHT} described rightly": True,
        f"onnx:{file}?range=[0,255] described rightly": False,
    }


def test_a_network_without_settings_is_told_how_it_gets_its_images(
    data: str, network: nn.Module, tmp_path: Path
) -> None:
    model = Model.of(network, input_spec=replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3), name="own")
    with given({"own": model}):
        _, (warning,) = checked(recipe_tree(data, "object:own"), tmp_path)
    assert "top-1 as it is described, and " in warning
    assert (
        "with ImageNet's mean and std. Check how it was trained: here it gets RGB images with mean 0 and std 1"
        in warning
    )


@pytest.mark.parametrize("fit", [{"epochs": 1, "lr": 1e-4}, "probe"])
def test_a_teacher_that_is_fitted_is_not_tried(
    fit: Any, data: str, network: nn.Module, tmp_path: Path
) -> None:
    model = Model.of(network, input_spec=replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3), name="own")
    with given({"own": model}):
        record, warnings = checked(recipe_tree(data, {"model": "object:own", "fit": fit}), tmp_path)
    assert (record[DESCRIPTIONS], warnings, of_descriptions(record)) == ([], [], [])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:org/name", "image_mean, image_std and do_flip_channel_order in its preprocessor_config.json"),
        ("own", "here it gets RGB images with mean [0.485,0.456,0.406] and std [0.229,0.224,0.225]"),
    ],
)
def test_where_the_input_of_a_kind_is_from(spec: str, words: str) -> None:
    model = Model(spec, spec, nn.Identity(), SPEC, None, None, "", pretrained=True)
    assert words in teacher_inputs._where_the_input_is_from(model)


def test_where_the_classes_of_a_kind_are_from(tmp_path: Path) -> None:
    def words(model: Model) -> str:
        return teacher_inputs._where_the_classes_are_from(model)

    model = Model("hf:org/name", "", nn.Identity(), SPEC, None, None, "", pretrained=True)
    assert words(model) == "Check id2label in its config.json"
    own = replace(load_model("test_resnet@none"), spec=f"test_resnet@{tmp_path}/own.pth")
    assert words(own).endswith(f"one a line, in {tmp_path}/own.classes.txt")
    assert words(replace(own, spec="test_resnet")) == "Check the list of its classes"
