"""Odd folders: what is no image, no class or not readable is passed over and named; nothing is dropped in silence."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.refusals import source_refusal as refusal

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.classes import map_classes
from tutelage.data.decode import SUFFIXES, UnreadableImage, decode
from tutelage.data.sources.base import open_for_evaluation, open_source, parts_of
from tutelage.data.splits import make_splits

Build = Callable[[Path], None]
made = iter(range(10**9))


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def put(root: Path, *names: str | bytes, content: bytes | None = None) -> None:
    """Files of different pictures, or of one content; parent folders are made."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture(next(made)) if content is None else content)


def pets(root: Path, count: int = 4) -> None:
    put(root, *(f"{cls}/{i}.png" for cls in ("cat", "dog") for i in range(count)))


# --- what is passed over --------------------------------------------------------------------------------


def heic_beside(root: Path) -> None:
    put(root, "cat/a.heic", "cat/b.HEIC", "dog/c.cr2", content=b"raw")


def class_of_raw(root: Path) -> None:
    put(root, "bird/a.nef", "bird/b.nef", content=b"raw")


def loose(root: Path) -> None:
    put(root, "logo.gif", content=b"\0")


def fifo(root: Path) -> None:
    os.mkfifo(root / "cat/pipe.png")


def system_files(root: Path) -> None:
    put(
        root,
        "cat/._0.png",
        ".DS_Store",
        "cat/Thumbs.db",
        "__MACOSX/cat/0.png",
        "@eaDir/0.png",
        content=b"\0\5",
    )


def lost_link(root: Path) -> None:
    (root / "cat/gone.png").symlink_to(root / "nowhere.png")


def folder_named_like_an_image(root: Path) -> None:
    (root / "cat/album.jpg").mkdir()


def texts(root: Path) -> None:
    put(root, "README.txt", "cat/notes.xml", "labels.csv", content=b"words")


def empty_class(root: Path) -> None:
    (root / "fish").mkdir()


@pytest.mark.parametrize(
    ("build", "notes"),
    [
        (class_of_raw, ["2 .nef passed over", "folders without images are no classes: bird"]),
        (loose, ["1 image beside the class folders passed over: logo.gif"]),
        (lost_link, ["1 link to nowhere passed over: cat/gone.png"]),
        (empty_class, ["folders without images are no classes: fish"]),
        (fifo, []),
        (system_files, []),
        (folder_named_like_an_image, []),
        (texts, []),
    ],
)
def test_what_is_no_readable_image_is_passed_over_and_named(
    tmp_path: Path, build: Build, notes: list[str]
) -> None:
    pets(tmp_path)
    before = open_source(f"folder:{tmp_path}")
    build(tmp_path)
    images = open_source(f"folder:{tmp_path}")
    assert list(images.ids) == list(before.ids)
    assert images.classes == ("cat", "dog")
    assert len(images.notes) == len(notes)
    for note, part in zip(images.notes, notes, strict=True):
        assert part in note
    assert make_splits(DataRecipe(train=str(tmp_path), val_fraction=0.2)).notes == images.notes


@pytest.mark.skipif(".heic" in SUFFIXES, reason="pillow-heif is installed")
def test_heic_files_are_counted_and_the_package_that_reads_them_is_named(tmp_path: Path) -> None:
    pets(tmp_path)
    heic_beside(tmp_path)
    (note,) = open_source(f"folder:{tmp_path}").notes
    assert "2 .heic, 1 .cr2 passed over" in note
    assert ".heic: pip install pillow-heif reads them" in note
    assert ".cr2: convert them" in note


def test_heic_files_are_read_with_pillow_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    pets(tmp_path)
    path = tmp_path / "cat/a.heic"
    heif.from_pillow(Image.new("RGB", (32, 24), (200, 30, 40))).save(path)
    images = open_source(f"folder:{tmp_path}")
    assert images.notes == ()
    assert np.allclose(
        images.image(list(images.ids).index("cat/a.heic")).getpixel((9, 9)), (200, 30, 40), atol=9
    )


@pytest.mark.skipif(".heic" in SUFFIXES, reason="pillow-heif is installed")
def test_a_heic_image_of_another_name_is_told_as_such(tmp_path: Path) -> None:
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    put(tmp_path, "phone.jpg", content=content)
    for where in (content, tmp_path / "phone.jpg"):
        with pytest.raises(
            UnreadableImage, match="a HEIC image, whatever its name says; pip install pillow-heif"
        ):
            decode(where, "phone.jpg")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a/1.cr2", "b/2.cr2"], "there are 2 .cr2 (.cr2: convert them to JPEG or PNG)"),
        (["train-0.tar", "train-1.tar"], "there are 2 .tar (.tar: write wds:PATTERN"),
        (["part-0.parquet"], "write hf:PATH"),
        (["images.zip"], "name the file itself, such as photos.zip"),
        (["data_batch_1", "data_batch_2", "test_batch"], "CIFAR's python version"),
        (["readme"], "there are 1 without a suffix"),
    ],
)
def test_a_folder_without_images_tells_what_it_has(tmp_path: Path, names: list[str], line: str) -> None:
    put(tmp_path, *names, content=b"x")
    assert line in refusal(f"folder:{tmp_path}")


def test_many_images_beside_one_folder_are_not_dropped(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.png" for i in range(9)), "cat/1.png", "dog/1.png")
    assert "lies beside the class folders" in refusal(f"folder:{tmp_path}")


# --- one part, one class --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("val", "validation"), ("valid", "dev"), ("Val", "val"), ("val", "valid")])
def test_two_folders_for_one_part_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in ("train", *names):
        pets(tmp_path / name)
    spec = f"folder:{tmp_path}"
    assert parts_of(spec) == ("train", "val")
    line = refusal(spec, "val")
    assert "are both its part val" in line
    assert all(name in line for name in names)
    assert f"data.val=folder:{tmp_path}/{sorted(names)[0]}" in line
    with pytest.raises(TutelageError, match="are both its part val"):
        make_splits(DataRecipe(train=spec))
    chosen = make_splits(DataRecipe(train=spec, val=f"{spec}/{names[1]}"))
    assert chosen.val.images.name == f"{spec}/{names[1]}"


@pytest.mark.parametrize("names", [("train", "training"), ("test", "testing")])
def test_so_are_two_of_train_and_test(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in ("train", "val", *names):
        pets(tmp_path / name)
    with pytest.raises(TutelageError, match=f"are both its part {names[0]}"):
        make_splits(DataRecipe(train=f"folder:{tmp_path}"))


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Ärger é") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "pair", [(COMPOSED, DECOMPOSED), ("café", b"caf\xe9"), (DECOMPOSED.replace("e", "o"), "dog")]
)
def test_two_spellings_of_one_name_are_one_class(
    tmp_path: Path, pair: tuple[str | bytes, str | bytes]
) -> None:
    for number, name in enumerate(pair):
        put(tmp_path, *(os.fsencode(name) + b"/%d%d.png" % (number, i) for i in range(2)))
    put(tmp_path, "zebra/1.png")
    images = open_source(f"folder:{tmp_path}")
    assert images.labels is not None
    one = unicodedata.normalize("NFC", os.fsencode(pair[0]).decode("utf-8"))
    if "dog" in pair:
        assert images.classes == ("dog", "zebra", one)
        return
    assert images.classes == tuple(sorted(("zebra", one)))
    assert sorted(np.bincount(images.labels).tolist()) == [1, 4]
    assert len(set(images.ids)) == 5


def test_a_class_of_val_may_be_spelt_otherwise_than_that_of_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{COMPOSED}/{i}.png" for i in range(3)), *(f"train/x/{i}.png" for i in range(3)))
    put(tmp_path, f"val/{DECOMPOSED}/7.png", "val/x/7.png")
    splits = make_splits(DataRecipe(train=f"folder:{tmp_path}", val_fraction=0.3))
    assert [splits.classes[label] for label in splits.test.labels] == ["x", COMPOSED]
    assert map_classes(splits.classes, ["x", DECOMPOSED]) is not None


def test_names_that_are_no_utf8_are_read_and_can_be_written(tmp_path: Path) -> None:
    put(tmp_path, *(b"caf\xe9/%d.png" % i for i in range(3)), *(b"tea/\xfc%d.png" % i for i in range(3)))
    images = open_source(f"folder:{tmp_path}")
    assert images.classes == ("café", "tea")
    for text in (*images.classes, *images.ids, images.name):
        text.encode("utf-8")
    assert [images.image(i).size for i in range(6)] == [(16, 12)] * 6
    assert (images.sizes() > 0).all()
    assert len({images.place(i) for i in range(6)}) == 6


# --- wrappers and links ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["photos", "photos/data", "a zip's folder"])
def test_the_folders_of_a_zip_are_looked_through(tmp_path: Path, inside: str) -> None:
    pets(tmp_path / inside)
    put(tmp_path, "__MACOSX/photos/._1.png", "licence.txt", content=b"x")
    images = open_source(f"folder:{tmp_path}")
    assert images.classes == ("cat", "dog")
    assert images.ids[0] == f"{inside}/cat/0.png"
    assert f"read from {inside}/" in images.notes[0]


def test_parts_in_a_wrapper_are_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        pets(tmp_path / "set-v2" / part)
    assert parts_of(str(tmp_path)) == ("train", "val")
    assert open_source(str(tmp_path), "val").ids[0] == "set-v2/val/cat/0.png"


def test_one_class_alone_is_no_wrapper(tmp_path: Path) -> None:
    put(tmp_path, "cat/deep/1.png", "cat/2.png")
    assert open_source(str(tmp_path)).classes == ("cat",)


def test_two_links_to_one_image_are_copies_and_no_error(tmp_path: Path) -> None:
    pets(tmp_path, 20)
    for i in range(20):
        os.link(tmp_path / f"cat/{i}.png", tmp_path / f"cat/link-{i}.png")
        (tmp_path / f"dog/link-{i}.png").symlink_to(tmp_path / f"dog/{i}.png")
    splits = make_splits(DataRecipe(train=str(tmp_path)))
    held = {splits.test.image(i).tobytes() for i in range(len(splits.test))}
    held |= {splits.val.image(i).tobytes() for i in range(len(splits.val))}
    assert not held & {splits.train.image(i).tobytes() for i in range(len(splits.train))}
    assert "copies of val or test images left out" in splits.notes[0]


def test_one_picture_a_class(tmp_path: Path) -> None:
    put(tmp_path / "train", *(f"{cls}/1.png" for cls in "abc"))
    put(tmp_path / "test", *(f"{cls}/2.png" for cls in "abc"))
    with pytest.raises(TutelageError, match=r"data.val: no image of .* is left for it"):
        make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test"))


def test_what_an_evaluation_does_not_use_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pets(tmp_path)
    loose(tmp_path)
    open_for_evaluation(str(tmp_path))
    assert "logo.gif" in caplog.text
