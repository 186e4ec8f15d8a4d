"""`data.exclude`: images that a list names are left out of training and model selection, and never out of test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.splits import Splits, make_splits

PARTS = ("train", "val", "test")


def pictures(root: Path, counts: dict[str, int], seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return str(root)


def ids(splits: Splits) -> dict[str, set[str]]:
    return {role: set(getattr(splits, role).ids) for role in PARTS}


def listing(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_listed_images_leave_train_and_val_and_the_test_stays_the_same(tmp_path: Path) -> None:
    recipe = DataRecipe(train=pictures(tmp_path / "all", {"a": 30, "b": 30}))
    before = make_splits(recipe)
    gone = {"train": set(before.train.ids[:3]), "val": set(before.val.ids[:1])}
    names = [*gone["train"], *gone["val"]]
    file = listing(tmp_path, "# a title", "", f"./{names[0]}  # dark", *names[1:])
    splits = make_splits(recipe.model_copy(update={"exclude": file}))
    assert ids(splits) == {role: found - gone.get(role, set()) for role, found in ids(before).items()}
    (note,) = splits.notes
    assert note.startswith(f"data.exclude={file}: 4 images left out (3 of train, 1 of val): ")
    assert all(name in note for name in sorted(gone["train"]))
    assert splits.record()["excluded"]["images"] == {"train": 3, "val": 1}
    assert "excluded" not in before.record()


def test_comments_and_order_do_not_change_the_digest_and_other_images_do(tmp_path: Path) -> None:
    recipe = DataRecipe(train=pictures(tmp_path / "all", {"a": 30, "b": 30}))
    first, second, third = make_splits(recipe).train.ids[:3]

    def digest(*lines: str) -> str:
        splits = make_splits(recipe.model_copy(update={"exclude": listing(tmp_path, *lines)}))
        found: str = splits.record()["excluded"]["digest"]
        return found

    assert digest(first, second) == digest("# new", f"{second}  # why", first)
    assert digest(first, second) != digest(first, third)


def test_unlabelled_images_are_left_out_too(tmp_path: Path) -> None:
    train = pictures(tmp_path / "all", {"a": 9, "b": 9})
    unlabelled = pictures(tmp_path / "more", {"x": 5}, seed=1)
    recipe = DataRecipe(train=train, unlabelled=unlabelled, exclude=listing(tmp_path, "x/03.png"))
    splits = make_splits(recipe)
    assert splits.unlabelled is not None
    assert splits.unlabelled.ids == ["x/00.png", "x/01.png", "x/02.png", "x/04.png"]


def test_a_test_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = DataRecipe(train=pictures(tmp_path / "all", {"a": 30, "b": 30}))
    splits = make_splits(recipe)
    file = listing(tmp_path, splits.train.ids[0], splits.test.ids[0])
    with pytest.raises(TutelageError) as caught:
        make_splits(recipe.model_copy(update={"exclude": file}))
    assert str(caught.value) == (
        f"data.exclude={file}: line 2: {splits.test.ids[0]} is a test image, and test images are never left out, since "
        "that would change what is measured; remove the line"
    )


def test_an_image_of_a_test_source_is_refused_too(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "a", {"a": 9, "b": 9}), pictures(tmp_path / "b", {"a": 12, "b": 3}, 1)
    recipe = DataRecipe(train=train, test=test)
    with pytest.raises(TutelageError, match=r"line 1: a/11\.png is a test image"):
        make_splits(recipe.model_copy(update={"exclude": listing(tmp_path, "a/11.png")}))
    splits = make_splits(recipe.model_copy(update={"exclude": listing(tmp_path, "a/01.png")}))
    assert "a/01.png" not in ids(splits)["train"] | ids(splits)["val"]  # the training image of this name
    assert "a/01.png" in ids(splits)["test"]


def test_an_image_of_two_sources_needs_its_part(tmp_path: Path) -> None:
    train, val = pictures(tmp_path / "a", {"a": 9, "b": 9}), pictures(tmp_path / "b", {"a": 9, "b": 9}, 1)
    recipe = DataRecipe(train=train, val=val)
    taken = next(name for name in make_splits(recipe).train.ids)
    with pytest.raises(TutelageError, match=rf"write train:{taken} or val:{taken}"):
        make_splits(recipe.model_copy(update={"exclude": listing(tmp_path, taken)}))
    splits = make_splits(recipe.model_copy(update={"exclude": listing(tmp_path, f"val:{taken}")}))
    assert taken in ids(splits)["train"]
    assert taken not in ids(splits)["val"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a/99.png"], "line 1: 'a/99.png' is no image of"),
        (
            ["# x", "a/99.png", "c.png", "d.png"],
            r"line 2: 'a/99.png' is no image of .* \(2 other lines of it too\)",
        ),
        (["val:a/99.png"], "line 1: 'val:a/99.png' is no image"),
    ],
)
def test_a_line_that_names_nothing_is_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    train = pictures(tmp_path / "all", {"a": 9, "b": 9})
    with pytest.raises(TutelageError, match=rf"{expected}.*such as a/00\.png"):
        make_splits(DataRecipe(train=train, exclude=listing(tmp_path, *lines)))


def test_a_missing_list_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    train = pictures(tmp_path / "all", {"a": 9, "b": 9})
    with pytest.raises(TutelageError, match=r"data\.exclude=none\.txt: no such file; name a text file"):
        make_splits(DataRecipe(train=train, exclude="none.txt"))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TutelageError, match=r"data\.exclude=.*: cannot be read"):
        make_splits(DataRecipe(train=train, exclude=str(tmp_path / "list.txt")))


def test_a_list_of_all_images_leaves_none_for_training(tmp_path: Path) -> None:
    recipe = DataRecipe(train=pictures(tmp_path / "all", {"a": 9, "b": 9}))
    file = listing(tmp_path, *make_splits(recipe).train.ids)
    with pytest.raises(
        TutelageError, match=r"data\.train: no image of .* is left for it .*without \d+ images of"
    ):
        make_splits(recipe.model_copy(update={"exclude": file}))


def test_the_teachers_own_images_are_left_out_too(tmp_path: Path) -> None:
    train = pictures(tmp_path / "all", {"a": 9, "b": 9})
    teacher = pictures(tmp_path / "teacher", {"a": 5, "b": 12}, seed=1)
    recipe = DataRecipe(train=train, teacher=teacher, exclude=listing(tmp_path, "b/11.png"))
    splits = make_splits(recipe)
    assert splits.teacher is not None
    assert len(splits.teacher) == 16
    assert "b/11.png" not in splits.teacher.ids
