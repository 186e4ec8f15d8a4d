"""A run on images without labels: it follows the teacher, and claims nothing about accuracy."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from tests.conftest import TINY
from tests.helpers.fitted import fit
from tests.helpers.heard import Heard

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.pipeline.console import Bars
from tutelage.pipeline.run import begin, distill, show
from tutelage.pipeline.seeds import summary


def go(tree: dict, root: Path, name: str, progress: Silent | Bars | None = None) -> Run:
    recipe = parse_recipe(tree | {"name": name})
    run = begin(recipe, root, "test")
    distill(recipe, run, progress or Silent())
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 digits in a flat folder, 60 others in a folder for each class, and a teacher that knows them."""
    root = tmp_path_factory.mktemp("without")
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:210], digits.target, strict=False)):
        folder = root / "flat" if number < 150 else root / "labelled" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{number}.png")
    fit("test_resnet", whole(open_source("digits")), root / "teacher.safetensors", epochs=2)
    return root


@pytest.fixture
def tree(place: Path) -> dict:
    tree = copy.deepcopy(TINY)
    tree["teacher"] |= {"model": f"test_resnet@{place / 'teacher.safetensors'}", "fit": "auto"}
    tree["data"] = {"train": str(place / "flat"), "workers": 0}
    tree["train"] |= {"epochs": 3}
    return tree


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, width=200))
    made = copy.deepcopy(TINY)
    made["teacher"] |= {"model": f"test_resnet@{place / 'teacher.safetensors'}", "fit": "auto"}
    made["data"] = {"train": str(place / "flat"), "workers": 0}
    made["train"] |= {"epochs": 3}
    run = go(made, tmp_path_factory.mktemp("runs"), "without", bars)
    show(run, bars)
    return run, screen.getvalue()


def test_the_table_has_agreement_and_fidelity_and_no_accuracy(finished: tuple[Run, str]) -> None:
    record = read_json(finished[0].comparison)
    rows = {row["role"]: row for row in record["rows"]}
    assert list(rows) == ["teacher", "start", "distilled"]
    for row in rows.values():
        assert all(row[key] is None for key in ("top1", "top5", "nll", "ece"))
        assert row["why"]["top1"] == "the test images have no labels"
        assert row["n"] == record["test"]["n"] == 30
    assert (rows["teacher"]["agreement"], rows["teacher"]["fidelity"]) == (100, 0)
    assert rows["distilled"]["agreement"] > rows["start"]["agreement"] + 20
    assert 0 < rows["distilled"]["fidelity"] < rows["start"]["fidelity"]


def test_the_verdict_claims_nothing_about_accuracy(finished: tuple[Run, str]) -> None:
    verdict = read_json(finished[0].comparison)["verdict"]
    assert verdict["sentence"].startswith("No labels: nothing is claimed about accuracy.")
    assert (verdict["outcome"], verdict["against"], verdict["pairs"]) == (None, None, [])
    assert read_json(finished[0].choices)["loss.teacher_temperature"] == {
        "value": 1.0,
        "why": "val has no labels to calibrate the teacher on",
    }
    assert read_json(finished[0].diagnosis)["findings"] == []
    assert read_json(finished[0].preflight)["teacher"]["val"]["top1"] is None


def test_the_student_that_follows_the_teacher_best_on_val_is_kept(finished: tuple[Run, str]) -> None:
    record = read_json(finished[0].candidates)
    assert record["metric"] == "fidelity"
    by_name = {c["name"]: c["val"] for c in record["candidates"]}
    assert by_name[record["kept"]]["fidelity"] == min(val["fidelity"] for val in by_name.values())
    assert all(val["top1"] is None for val in by_name.values())
    rows = list(read_jsonl(finished[0].metrics))
    assert {row["stage"] for row in rows} == {"distill"}
    best = min(rows, key=lambda row: row["val"]["fidelity"])
    kept = by_name.get("best", by_name["last"])  # of equal states there is one candidate
    assert kept["fidelity"] == pytest.approx(best["val"]["fidelity"], rel=1e-4)


def test_terminal_and_page_say_so(finished: tuple[Run, str]) -> None:
    run, screen = finished
    page = run.report.read_text(encoding="utf-8")
    for told in (screen, page):
        assert "nothing is claimed about accuracy" in told
        assert "agreement with the teacher" in told
    assert "no training image of" in screen
    assert "there is no labels-only control, and no accuracy is claimed" in " ".join(screen.split())
    assert "val agreement" in screen
    assert "top-1 of" not in page.split("<script")[0]


def test_a_finished_run_without_labels_goes_through_again_unchanged(finished: tuple[Run, str]) -> None:
    run = finished[0]
    before = run.student.read_bytes(), run.comparison.read_bytes()
    from tutelage.core.recipe import load_recipe

    distill(load_recipe(run.recipe), run, Silent())
    assert run.student.read_bytes() == before[0]
    rows = {row["role"]: row for row in read_json(run.comparison)["rows"]}
    assert rows["distilled"]["agreement"] > 50


def test_seeds_without_labels_are_summed_up(finished: tuple[Run, str]) -> None:
    record = summary([finished[0], finished[0]])
    assert record["pairs"] == []
    assert "nothing is claimed about accuracy" in record["sentence"]
    assert len(record["agreement"]) == 2


def test_labels_on_test_alone_give_its_accuracy(place: Path, tree: dict, tmp_path: Path) -> None:
    tree["data"]["test"] = str(place / "labelled")
    heard = Heard()
    run = go(tree, tmp_path, "labelled-test", heard)
    assert any("there is no labels-only control, and accuracy is measured" in line for line in heard.lines)
    record = read_json(run.comparison)
    rows = {row["role"]: row for row in record["rows"]}
    assert list(rows) == ["teacher", "start", "distilled"]
    assert rows["distilled"]["top1"] > 20
    assert rows["distilled"]["agreement"] is None
    assert record["verdict"]["pairs"]
    assert read_json(run.candidates)["metric"] == "fidelity"
    assert run.report.stat().st_size > 0


def test_labels_on_val_and_test_alone_select_as_usual(place: Path, tree: dict, tmp_path: Path) -> None:
    labelled = str(place / "labelled")
    tree["data"] |= {"val": labelled, "test": labelled, "val_fraction": 0.4}
    tree["train"]["epochs"] = 1
    run = go(tree, tmp_path, "labelled-val")
    assert read_json(run.candidates)["metric"] == "top1"
    assert {row["stage"] for row in read_jsonl(run.metrics)} == {"distill"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"model": "test_resnet@none"}}, "its weights are random; name a teacher"),
        ({"loss": {"weight": 0.0, "label_weight": 1.0}}, "nothing to learn from but the teacher"),
        ({"teacher": {"fit": {"epochs": 1}}}, "teacher.fit: no training image has a label"),
        ({"student": {"head_fit": "probe"}}, "student.head_fit: no training image has a label"),
        (
            {"teacher": {"resolution": "best"}},
            "teacher.resolution=best: the images for model selection have no",
        ),
        (
            {"train": {"labelled_share": 0.5}},
            "train.labelled_share=0.5: all 90 training images have no labels",
        ),
    ],
)
def test_what_needs_labels_is_refused(tree: dict, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(TutelageError) as caught:
        go(
            {
                key: value | changes.get(key, {}) if isinstance(value, dict) else value
                for key, value in tree.items()
            },
            tmp_path,
            "run",
        )
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_does_not_know_the_classes_needs_labels(
    place: Path, tree: dict, tmp_path: Path
) -> None:
    other = place / "other"
    for name in ("cat", "dog"):
        (other / name).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(other / name / f"{number}.png")
    tree["data"] |= {"val": str(other), "test": str(other), "val_fraction": 0.5}
    with pytest.raises(
        TutelageError, match="its head does not have the classes of the data, and no training image"
    ):
        go(tree, tmp_path, "run")
