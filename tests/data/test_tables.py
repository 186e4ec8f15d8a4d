"""Lists of images in CSV and Parquet files: which rows are used, with which class, and what is refused."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import TINY
from tests.helpers.refusals import source_refusal as refusal

from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.data.decode import UnreadableImage
from tutelage.data.sources.base import open_for_evaluation, open_source, parts_of
from tutelage.data.splits import make_splits

HEADER = "path,label"


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures, p/0.png to p/9.png, and the folder that lists are written to."""
    (tmp_path / "p").mkdir()
    for number in range(10):
        (tmp_path / f"p/{number}.png").write_bytes(picture(number))
    return tmp_path


def write(root: Path, *lines: str, name: str = "labels.csv") -> str:
    path = root / name
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return str(path)


def rows(classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> list[str]:
    return [f"p/{number}.png,{classes[number % len(classes)]}" for number in range(count)]


def named(images) -> list[tuple[str, str | None]]:
    return [
        (name, images.classes[label] if label >= 0 else None)
        for name, label in zip(images.ids, images.labels, strict=True)
    ]


# --- what a list says -----------------------------------------------------------------------------------


def test_a_list_gives_paths_below_its_folder_and_classes_and_needs_no_kind(root):
    where = write(root, HEADER, *rows())
    images = open_source(where)
    assert images.name == f"csv:{where}"
    assert named(images)[:2] == [("p/0.png", "cat"), ("p/1.png", "dog")]
    assert np.array_equal(np.asarray(images.image(3)), np.asarray(Image.open(root / "p/3.png")))
    assert images.sizes().tolist() == [len(picture(number)) for number in range(10)]
    assert images.place(0) == open_source(str(root / "p")).place(0)  # one file, however it is named


@pytest.mark.parametrize(
    "lines",
    [
        ["label;file name;PATH", "cat;x;p/0.png", "dog;x;p/1.png"],
        ["path\tlabel", "p/0.png\tcat", "p/1.png\tdog"],
        ["p/0.png,cat", "p/1.png,dog"],  # no line of names
        ["\ufeffpath,label", "", "p/0.png,cat\r", 'p/1.png," dog "', ","],
        ["id,class", "./p/0.png,cat", "p\\1.png,dog"],  # written on Windows
        ["path,label", "p/../p/0.png,cat", "p/1.png,dog"],
    ],
)
def test_lists_as_programs_write_them(root, lines):
    assert named(open_source(write(root, *lines))) == [("p/0.png", "cat"), ("p/1.png", "dog")]


def test_columns_can_be_named(root):
    where = write(root, "n,foto,species,genus", *(f"{i},p/{i}.png,s{i % 3},g{i % 2}" for i in range(6)))
    assert open_source(f"{where}?image=foto&label=species").classes == ("s0", "s1", "s2")
    assert open_source(f"csv:{where}?image=foto&label=genus").classes == ("g0", "g1")
    assert open_source(f"csv:{where}?image=foto&label=").labels is None
    assert "no column of paths; it has n, foto, species, genus: name one" in refusal(where)
    assert "no column of classes; it has n, species, genus: name one, as in ?label=n" in refusal(
        f"{where}?image=foto"
    )
    assert "label=kind: no such column; it has n, foto" in refusal(f"{where}?image=foto&label=kind")
    assert "unknown option 'lable'; there are image, label, split, root" in refusal(f"{where}?lable=species")
    assert "options are not understood" in refusal(f"{where}?species")


def test_classes_in_any_language_and_numbers_in_order(root):
    classes = ("猫", "كلب", "Große Katze", "a, b", "שועל", "🦊")
    text = io.StringIO()
    csv.writer(text).writerows([["path", "label"], *([f"p/{i}.png", c] for i, c in enumerate(classes))])
    assert [cls for _, cls in named(open_source(write(root, text.getvalue())))] == list(classes)
    decomposed = unicodedata.normalize("NFD", "Größe")
    where = write(root, HEADER, "p/0.png,Größe", f"p/1.png,{decomposed}", "p/2.png,x")
    assert open_source(where).classes == ("Größe", "x")
    numbers = open_source(write(root, HEADER, "p/0.png,10", "p/1.png,9", "p/2.png,1"))
    assert numbers.classes == ("1", "9", "10")


def test_names_that_are_no_utf8_lead_to_their_files(root):
    name = b"p/\xe9.png"
    with open(os.path.join(os.fsencode(root), name), "wb") as file:
        file.write(picture(77))
    (root / "labels.csv").write_bytes(b"path,label\n" + name + b",caf\xe9\np/1.png,x\n")
    images = open_source(str(root / "labels.csv"))
    assert images.classes == ("café", "x")
    assert images.ids[0] == "p/%E9.png"
    assert images.image(0).size == (16, 12)


def test_a_row_without_a_class_is_an_unlabelled_image(root):
    where = write(root, HEADER, *rows(count=8), "p/8.png,", "p/9.png,  ")
    splits = make_splits(DataRecipe(train=where, val_fraction=0.2, test_fraction=0.2))
    assert splits.unlabelled is not None
    assert sorted(splits.unlabelled.ids) == ["p/8.png", "p/9.png"]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 8
    assert open_source(write(root, "path", "p/0.png", "p/1.png")).labels is None


def test_a_column_of_parts(root):
    parts = ["train"] * 6 + ["valid"] * 2 + ["Test"] * 2
    lines = [f"{row},{part}" for row, part in zip(rows(), parts, strict=True)]
    where = write(root, f"{HEADER},split", *lines)
    assert parts_of(where) == ("train", "val", "test")
    assert list(open_for_evaluation(where).ids) == ["p/8.png", "p/9.png"]
    assert list(open_source(f"{where}#val").ids) == ["p/6.png", "p/7.png"]
    splits = make_splits(DataRecipe(train=where))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 2, 2]
    assert len(open_source(f"{where}?split=")) == 10
    assert "it has train, val, test" in refusal(f"{where}#holdout")
    write(root, f"{HEADER},split", *lines[:-1], "p/9.png,dog,fold 3")
    assert "line 11: the part is 'fold 3', and should be train, val or test" in refusal(where)


def test_paths_from_another_folder(root):
    lists = root / "lists"
    lists.mkdir()
    where = write(lists, HEADER, "p/0.png,cat", f"{root}/p/1.png,dog")
    assert "is not below" in refusal(where) or "no file p/0.png" in refusal(where)
    assert named(open_source(f"{where}?root={root}")) == [("p/0.png", "cat"), ("p/1.png", "dog")]
    assert "root=" in refusal(f"{where}?root={root}/nowhere")


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["p/0.png,cat", "p/77.png,dog"], "line 3: there is no file p/77.png"),
        (["p/0.png,cat", "p/7a.png,dog", "p/7b.png,dog", "p/7c.png,x"], "those of 2 lines more: 4, 5"),
        (["p/0.png,cat", "../secret.png,dog"], "line 3: ../secret.png is not below"),
        (["p/0.png,cat", "/etc/passwd,dog"], "line 3: /etc/passwd is not below"),
        (["p/0.png,cat", "http://x.org/1.png,dog"], "line 3: http://x.org/1.png is an address of the web"),
        (["p/0.png,cat", "p/0.png,dog"], "p/0.png has two classes, cat in line 2 and dog in line 3"),
        (["p/0.png,cat", "./p/0.png,"], "two classes, cat in line 2 and none in line 3"),
        (["p/0.png,cat", ",dog"], "line 3: no path of an image"),
        (["p/0.png,cat", "p/1.png"], "line 3 has 1 cell, and 2 are needed"),
        (["p/0.png,cat", "p/1.png,../up"], "class name '../up' is refused"),
        (["p/0.png,cat", '"p/1.png,' + "x" * 200_000], "line 3: no CSV (field larger than field limit"),
        ([], "no images found"),
    ],
)
def test_a_bad_row_is_named(root, lines, expected):
    assert expected in refusal(write(root, HEADER, *lines))


def test_files_that_are_no_lists(root):
    assert "no such file" in refusal(f"csv:{root}/nothing.csv")
    assert "a folder, not a file" in refusal(f"csv:{root}/p")
    assert "the file is empty" in refusal(write(root))
    (root / "utf16.csv").write_text(f"{HEADER}\np/0.png,cat\n", encoding="utf-16")
    assert "save the table as CSV in UTF-8" in refusal(str(root / "utf16.csv"))
    assert "no Parquet file that can be read" in refusal(write(root, "nothing", name="a.parquet"))


def test_rows_that_repeat_are_counted(root):
    images = open_source(write(root, HEADER, *rows(), *rows(count=3)))
    assert len(images) == 10
    assert images.notes == (f"{images.name}: 3 rows passed over, which an earlier row repeats",)


def test_one_image_in_two_parts_is_refused(root):
    where = write(root, f"{HEADER},split", "p/0.png,cat,train", "p/1.png,dog,test", "p/0.png,cat,test")
    assert "p/0.png has two parts, train in line 2 and test in line 4" in refusal(where)


def test_a_picture_that_is_cut_off_is_named_with_its_row(root):
    (root / "p/4.png").write_bytes(picture(4)[:60])
    images = open_source(write(root, HEADER, *rows()))
    with pytest.raises(UnreadableImage, match=r"p/4.png: cannot be decoded .*; line 6 of labels.csv"):
        images.image(4)


# --- identity -------------------------------------------------------------------------------------------


def test_the_digest_follows_what_the_list_says(root):
    where = write(root, HEADER, *rows())
    first = open_source(where).digest()
    assert open_source(where).digest() == first
    write(root, HEADER, *rows()[:-1], "p/9.png,cat")
    changed = open_source(where).digest()
    assert changed != first
    (root / "p/0.png").write_bytes(picture(0) + b"\0")
    assert open_source(where).digest() != changed


def test_copies_of_test_images_are_left_out_as_of_folders(root):
    (root / "p/0.png").write_bytes((root / "p/9.png").read_bytes())
    parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    classes = ["cat", "cat", "dog", "cat", "dog", "dog", "cat", "dog", "cat", "cat"]
    lines = [f"p/{i}.png,{classes[i]},{parts[i]}" for i in range(10)]
    splits = make_splits(DataRecipe(train=write(root, f"{HEADER},split", *lines)))
    assert "p/0.png" not in list(splits.train.ids)
    assert len(splits.train) == 5


# --- Parquet --------------------------------------------------------------------------------------------


def test_parquet(root):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    where = str(root / "labels.parquet")
    paths = [f"p/{i}.png" for i in range(4)]
    pq.write_table(pa.table({"file": paths, "label": [2.0, 10.0, None, 2.0]}), where)
    images = open_source(where)
    assert images.name == f"parquet:{where}"
    assert named(images) == list(zip(paths, ["2", "10", None, "2"], strict=True))
    pq.write_table(pa.table({"file": [*paths, "p/77.png"], "label": list("aabba")}), where)
    assert "row 5: there is no file p/77.png" in refusal(f"parquet:{where}")
    pq.write_table(pa.table({"image": [picture(0)], "label": ["a"]}), where)
    assert f"it holds the pictures themselves; write hf:{where}" in refusal(where)


def test_a_run_from_a_list(root, tmp_path):
    """As a run takes it: its splits are those of the recipe, and stay the same when it goes on."""
    where = write(root, HEADER, *rows())
    recipe = parse_recipe(TINY | {"data": {"train": where, "val_fraction": 0.2}})
    first, again = make_splits(recipe.data), make_splits(recipe.data)
    assert first.record() == again.record()
    assert not set(first.train.ids) & set(first.test.ids)
