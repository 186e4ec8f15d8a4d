"""Copies of val and test images among the training images: found by their bytes, left out, counted and named."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json
from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.folder import Folder
from tutelage.data.splits import make_splits, recorded_copies


def pictures(root: Path, counts: dict[str, int], seed: int = 0) -> list[Path]:
    rng = np.random.default_rng(seed)
    made = []
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            made.append(root / name / f"{number:02}.png")
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(made[-1])
    return made


def copy(paths: list[Path], root: Path) -> None:
    for number, path in enumerate(paths):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.parent.name / f"copy-{number}.png")


def test_copies_of_test_images_are_left_out_counted_and_named(tmp_path: Path) -> None:
    train = pictures(tmp_path / "train", {"a": 20, "b": 20})
    copy(train[::4], tmp_path / "test")
    recipe = DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test")
    splits = make_splits(recipe)
    left = {*splits.train.ids, *splits.val.ids}
    assert left == {path.relative_to(tmp_path / "train").as_posix() for path in train} - {
        path.relative_to(tmp_path / "train").as_posix() for path in train[::4]
    }
    assert len(splits.test) == 10
    (note,) = splits.notes
    assert "10 copies of val or test images left out: a/00.png = a/copy-0.png" in note
    assert "data.drop_duplicates=false" in note
    assert splits.record()["notes"] == [note]
    assert splits.train.split.endswith("without 10 copies of val or test images")
    kept = make_splits(recipe.model_copy(update={"drop_duplicates": False}))
    assert len(kept.train) + len(kept.val) == 40
    assert kept.notes == ()


def test_copies_within_one_folder_are_found_after_it_was_split(tmp_path: Path) -> None:
    made = pictures(tmp_path / "all", {"a": 30, "b": 30})
    copy(made, tmp_path / "all")
    splits = make_splits(DataRecipe(train=f"{tmp_path}/all"))
    held = {
        path.read_bytes()
        for part in (splits.val, splits.test)
        for path in map((tmp_path / "all").joinpath, part.ids)
    }
    assert not held & {(tmp_path / "all" / name).read_bytes() for name in splits.train.ids}
    assert len(splits.val) == len(splits.test) == 24


def test_unlabelled_copies_are_left_out_too(tmp_path: Path) -> None:
    made = pictures(tmp_path / "all", {"a": 20, "b": 20})
    (tmp_path / "more").mkdir()
    for number, path in enumerate(made):
        shutil.copy(path, tmp_path / "more" / f"{number}.png")
    splits = make_splits(DataRecipe(train=f"{tmp_path}/all", unlabelled=f"{tmp_path}/more"))
    assert splits.unlabelled is not None
    assert len(splits.unlabelled) == 40 - len(splits.val) - len(splits.test)


def test_copies_are_found_across_kinds_of_sources(tmp_path: Path) -> None:
    train = pictures(tmp_path / "train", {"a": 12, "b": 12})
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        for path in train[::3]:
            info = tarfile.TarInfo(f"{path.parent.name}/{path.stem}.png")
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    splits = make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"wds:{tmp_path}/test.tar"))
    assert len(splits.train) + len(splits.val) == 16


def test_where_nothing_is_equal_nothing_changes(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"a": 9, "b": 9}, seed=1)
    pictures(tmp_path / "test", {"a": 9, "b": 9}, seed=2)
    recipe = DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test")
    plain = make_splits(recipe.model_copy(update={"drop_duplicates": False}))
    assert make_splits(recipe).record() == plain.record()


def test_only_files_of_equal_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = pictures(tmp_path / "train", {"a": 9, "b": 9})
    copy(train[:1], tmp_path / "test")
    copy(train[9:10], tmp_path / "test")
    for number, path in enumerate(train[1:9] + train[10:]):
        path.write_bytes(path.read_bytes() + bytes(1000 * (number + 1)))
    read = reads(monkeypatch)
    splits = make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test"))
    assert len(splits.train) + len(splits.val) == 16
    # the two test images, and the two training images of their sizes
    assert sorted(index for index, count in read if count > 0) == [0, 0, 1, 9]


def test_no_file_is_read_twice_however_many_begin_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):  # uncompressed, with the same first rows: equal sizes and equal beginnings
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[0] = number  # BMP begins with the lowest row
        folder = tmp_path / ("train" if number < 40 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
    shutil.copy(tmp_path / "test" / "a" / "50.bmp", tmp_path / "train" / "a")
    read = reads(monkeypatch)
    splits = make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test"))
    assert len(splits.train) + len(splits.val) == 40
    assert "a/50.bmp = a/50.bmp" in splits.notes[0]
    assert len([count for _, count in read if count > 0]) == 41 + 20
    assert len(read) <= 2 * (41 + 20) + 61  # and at most each once as a whole in each of the two comparisons


def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of `content` from now on: index and number of bytes."""
    found: list[tuple[int, int]] = []
    content = Folder.content

    def recorded(self: Folder, index: int, count: int = -1) -> bytes | None:
        found.append((index, count))
        return content(self, index, count)

    monkeypatch.setattr(Folder, "content", recorded)
    return found


def test_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    copy(pictures(tmp_path / "train", {"a": 4, "b": 4}), tmp_path / "test")
    with pytest.raises(
        TutelageError, match=r"each of its 8 images is in data.val or data.test too; .*=false"
    ):
        make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test"))


def test_tiny_files_may_be_equal_by_chance(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), "white").save(tmp_path / name / f"{number}.png")
    splits = make_splits(DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test", val_fraction=0.4))
    assert len(splits.train) + len(splits.val) == 6


def test_a_class_that_consists_of_copies_is_refused_by_name(tmp_path: Path) -> None:
    train = pictures(tmp_path / "train", {"a": 6, "b": 3, "c": 1})
    copy([path for path in train if path.parent.name in {"b", "c"}], tmp_path / "test")
    copy(train[:1], tmp_path / "test")
    recipe = DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test")
    with pytest.raises(
        TutelageError,
        match=r"each training image of 2 classes \('b', 'c'\) is in data\.val or data\.test too",
    ):
        make_splits(recipe)
    assert len(make_splits(recipe.model_copy(update={"drop_duplicates": False})).classes) == 3


def test_a_class_of_copies_within_one_folder_is_refused_too(tmp_path: Path) -> None:
    pictures(tmp_path / "all", {"a": 20, "b": 1})
    for number in range(12):
        shutil.copy(tmp_path / "all/b/00.png", tmp_path / f"all/b/copy-{number}.png")
    with pytest.raises(TutelageError, match=r"each training image of 1 class \('b'\)"):
        make_splits(DataRecipe(train=f"{tmp_path}/all"))


def test_a_class_that_keeps_one_image_is_kept(tmp_path: Path) -> None:
    train = pictures(tmp_path / "train", {"a": 8, "b": 8})
    copy([path for path in train if path.parent.name == "b"][1:], tmp_path / "test")
    copy(train[:1], tmp_path / "test")
    splits = make_splits(
        DataRecipe(train=f"{tmp_path}/train", test=f"{tmp_path}/test", val=f"{tmp_path}/test")
    )
    assert sorted(np.bincount(splits.train.labels).tolist()) == [1, 7]


def test_what_was_found_needs_not_be_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export and the page of a run use its record, and only the first of several processes reads files."""
    train = pictures(tmp_path / "train", {"a": 20, "b": 20})
    copy(train[::4], tmp_path / "test")
    copy(train, tmp_path / "train")  # within the source too, found after it is split
    copy(train[::4], tmp_path / "more")
    recipe = DataRecipe(
        train=f"{tmp_path}/train", test=f"{tmp_path}/test", unlabelled=f"{tmp_path}/more", val_fraction=0.5
    )
    (tmp_path / "more" / "new").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "more" / "new" / "new.png")
    splits = make_splits(recipe)
    assert set(splits.copies) == {"source", "train", "unlabelled"}
    write_json(tmp_path / "splits.json", splits.record())
    known = recorded_copies(tmp_path / "splits.json")
    monkeypatch.setattr(Folder, "content", lambda *_: pytest.fail("it read a file"))
    again = make_splits(recipe, known)
    assert again.record() == splits.record()
    (tmp_path / "old.json").write_text("{}")
    assert recorded_copies(tmp_path / "old.json") is None
    assert recorded_copies(tmp_path / "none.json") is None
