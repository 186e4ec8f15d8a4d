"""Stored answers as teachers: what their files may look like, and how their rows are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.score_files import write_csv

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime
from tutelage.data.joined import join
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.evaluation.predict import predict_logits
from tutelage.models.registry import load_model
from tutelage.models.source import Model

CLASSES = ("cat", "dog", "owl")
NAMES = [f"{cls}/{number}.png" for cls in CLASSES for number in range(2)]
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(3), size=6).astype(np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs of three classes; a file name is that of one image of each class."""
    for place, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (place * 40, 10, 90)).save(path)
    return tmp_path / "photos"


def logits_of(model: Model, images: Subset) -> torch.Tensor:
    ready = model.for_images({"train": images}).recognised(images.classes)
    return predict_logits(ready.module, ready.input_spec, images, Runtime.start("cpu")).logits


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_answers_are_looked_up_by_the_image(photos: Path, suffix: str) -> None:
    """Whatever the order of rows and columns, and with further columns."""
    path = photos.parent / f"scores.{suffix}"
    order = np.random.default_rng(1).permutation(6)
    columns = {cls: PROBABILITIES[order, place] for place, cls in reversed(list(enumerate(CLASSES)))}
    names = [NAMES[place] for place in order]
    if suffix == "npz":
        probabilities = np.stack(list(columns.values()), 1)
        np.savez(path, images=np.array(names), classes=np.array(list(columns)), probabilities=probabilities)
    elif suffix == "csv":
        lines = [
            f"{name};a note;7;{';'.join(str(one[row]) for one in columns.values())}"
            for row, name in enumerate(names)
        ]
        path.write_text("\n".join([f"file;remark;number;{';'.join(columns)}", *lines]))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"note": ["x"] * 6, **columns, "image": names, "size": range(6)}), path)
    model = load_model(f"predictions:{path}")
    found = logits_of(model, whole(open_source(str(photos))))
    assert found.softmax(1).numpy() == pytest.approx(PROBABILITIES, abs=1e-5)
    assert model.recognised(CLASSES).class_ids == CLASSES


def test_rows_are_named_by_paths_of_any_length(photos: Path) -> None:
    """By the path below the data's folder, with that folder, or from the root of the file system."""
    images = whole(open_source(str(photos)))
    for start in ("", "photos/", f"{photos.resolve()}/"):
        path = write_csv(photos.parent / "s.csv", [start + name for name in NAMES], CLASSES, PROBABILITIES)
        assert (
            logits_of(load_model(f"predictions:{path}"), images)
            .argmax(1)
            .equal(torch.from_numpy(PROBABILITIES.argmax(1)))
        )


def test_a_file_name_may_stand_for_one_image_alone(photos: Path) -> None:
    images = whole(open_source(str(photos)))
    path = write_csv(photos.parent / "s.csv", ["0.png", "1.png"], CLASSES, PROBABILITIES[:2])
    with pytest.raises(TutelageError, match=r"'0\.png' is that of 3 images"):
        load_model(f"predictions:{path}").for_images({"train": images})
    cats = whole(open_source(str(photos / "cat")))
    ready = load_model(f"predictions:{path}").for_images({"train": cats}).recognised(CLASSES)
    found = predict_logits(ready.module, ready.input_spec, cats, Runtime.start("cpu")).logits
    assert found.softmax(1).numpy() == pytest.approx(PROBABILITIES[:2], abs=1e-5)


def test_images_of_several_folders_keep_their_rows(photos: Path) -> None:
    """Two folders have images of one id, which the paths tell apart; joined, they are found too."""
    other = photos.parent / "more"
    photos.rename(photos.parent / "first")
    for name in NAMES:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(other / name)
    names = [f"{folder}/{name}" for folder in ("first", "more") for name in NAMES]
    values = np.concatenate([PROBABILITIES, PROBABILITIES[::-1]])
    path = write_csv(photos.parent / "s.csv", names, CLASSES, values)
    both = [whole(open_source(str(photos.parent / folder))) for folder in ("first", "more")]
    model = load_model(f"predictions:{path}").for_images({"train": both[0], "unlabelled": both[1]})
    joined = join(*both)
    ready = model.recognised(CLASSES)
    found = predict_logits(ready.module, ready.input_spec, joined, Runtime.start("cpu")).logits
    assert found.softmax(1).numpy() == pytest.approx(values, abs=1e-5)


def test_numbers_tell_whether_they_are_probabilities(photos: Path) -> None:
    images = whole(open_source(str(photos)))

    def written(values: np.ndarray) -> Path:
        return write_csv(photos.parent / "s.csv", NAMES, CLASSES, values)

    logits = PROBABILITIES * 8 - 3
    assert logits_of(load_model(f"predictions:{written(logits)}"), images).numpy() == pytest.approx(
        logits, abs=1e-5
    )
    with pytest.raises(TutelageError, match=r"not all rows sum to 1; write \?output=probabilities"):
        logits_of(load_model(f"predictions:{written(PROBABILITIES / 2)}"), images)
    found = logits_of(load_model(f"predictions:{written(PROBABILITIES / 2)}?output=probabilities"), images)
    assert found.softmax(1).numpy() == pytest.approx(PROBABILITIES, abs=1e-5)
    with pytest.raises(TutelageError, match="below 0; use output=logits"):
        logits_of(load_model(f"predictions:{written(logits)}?output=probabilities"), images)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "no rows"),
        ("image,cat,dog\n", "no rows"),
        ("image,cat,dog\n1.png,0.5\n", "line 2 has 2 cells"),
        ("image,cat,dog\n1.png,0.5,0.5\n2.png,0.5,much\n", "line 3: column 'dog' holds 'much'"),
        ("image,cat,dog\n1.png,0.5,\n", "'1.png' has a cell without a number"),
        ("image,cat,dog\n1.png,0.5,0.5\n1.png,0.1,0.9\n", "image '1.png' twice"),
        ("image,cat,cat\n1.png,0.5,0.5\n", "class 'cat' twice"),
        ("image,cat\n1.png,0.5\n", "1 classes, and needs two"),
        ("cat,dog\n0.5,0.5\n", "no column of images"),
    ],
)
def test_a_table_that_is_wrong_is_named_in_one_line(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(TutelageError, match=named) as error:
        load_model(f"predictions:{path}")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet", "scores.npz", "scores.txt"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x00PK\x03\x04 \xff" * 50)
    with pytest.raises(TutelageError, match=name) as error:
        load_model(f"predictions:{path}")
    assert "\n" not in str(error.value)


def test_classes_that_a_file_lacks_are_named(photos: Path) -> None:
    path = write_csv(photos.parent / "s.csv", NAMES, ("cat", "dog", "bird"), PROBABILITIES)
    with pytest.raises(TutelageError, match=r"no column for 1 of the data's 3 classes \(owl\)"):
        load_model(f"predictions:{path}").with_head(CLASSES)


def test_stored_answers_are_for_the_images_of_a_run_alone(photos: Path) -> None:
    path = write_csv(photos.parent / "s.csv", NAMES, CLASSES, PROBABILITIES)
    model = load_model(f"predictions:{path}")
    with pytest.raises(TutelageError, match="can only be the teacher of a run"):
        model.module(torch.rand(2, 3, 8, 1))
