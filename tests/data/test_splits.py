"""Splits: disjoint, stratified, seeded, recorded; and what each role takes when the recipe does not say."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.joined import join
from tutelage.data.sources.base import ImageSet, open_source
from tutelage.data.splits import make_splits, stratified, whole


class Fake(ImageSet):
    """Images that are names and labels only."""

    def __init__(self, labels: list[int]) -> None:
        ids = [f"image-{i}" for i in range(len(labels))]
        super().__init__("fake", "fake", ids, [f"c{i}" for i in range(max(labels) + 1)], np.array(labels))

    def image(self, index: int) -> Image.Image:
        raise NotImplementedError


def tree(root: Path, counts: dict[str, int]) -> str:
    """A folder with so many images of each class, all different files."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name / f"{number:02}.png")
    return f"folder:{root}"


def refusal(**recipe) -> str:
    with pytest.raises(TutelageError) as caught:
        make_splits(DataRecipe(**recipe))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids(part):
    return set(part.ids)


# --- the stratified choice ------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
    spare=st.booleans(),
)
def test_each_class_gives_its_share(labels, share, seed, spare):
    images = Fake(labels)
    wanted = round(share * len(labels))
    taken = stratified(images, np.arange(len(labels)), wanted, seed, spare)
    counts = np.bincount(labels)
    free = np.maximum(counts - spare, 0)
    assert len(taken) == len(set(taken.tolist())) == min(wanted, free.sum())
    assert (np.diff(taken) > 0).all()
    given_ = np.bincount(np.array(labels)[taken], minlength=len(counts))
    if free.sum():
        exact = free * len(taken) / free.sum()
        assert (np.abs(given_ - exact) < 1 + 1e-9).all()  # rounded up or down, never further
    if spare:
        assert (given_[counts > 0] < counts[counts > 0]).all()


def test_another_seed_is_another_choice_and_the_same_seed_the_same():
    images = open_source("digits")
    everything = np.arange(len(images))
    first = stratified(images, everything, 300, 0)
    assert np.array_equal(first, stratified(images, everything, 300, 0))
    assert len(np.intersect1d(first, stratified(images, everything, 300, 1))) < 100


def test_more_images_hardly_change_the_choice():
    labels = [i % 5 for i in range(500)]
    few, more = Fake(labels), Fake([*labels, 0, 1])
    before = stratified(few, np.arange(500), 100, 0)
    after = stratified(more, np.arange(502), 100, 0)
    assert len(np.intersect1d(before, after)) > 95


# --- who takes what -------------------------------------------------------------------------------------


def test_one_source_is_parted_in_three():
    splits = make_splits(DataRecipe(train="digits", val_fraction=0.1))
    assert len(splits.test) == round(0.2 * 1797)
    assert len(splits.val) == round(0.1 * 1797)
    assert ids(splits.train) | ids(splits.val) | ids(splits.test) == set(open_source("digits").ids)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 1797
    for part in (splits.train, splits.val, splits.test):
        share = np.bincount(part.labels) / len(part)
        assert np.allclose(share, np.bincount(open_source("digits").labels) / 1797, atol=0.01)


@pytest.mark.parametrize(
    ("images", "val"),
    [
        (10, 2),
        (20, 4),
        (600, 120),
        (1499, 300),
        (1500, 300),
        (1797, 300),
        (2999, 300),
        (3000, 300),
        (3781, 378),
    ],
)
def test_val_has_enough_images_to_select_by(images, val, monkeypatch):
    """A tenth where that is 300 images or more; else 300, but at most a fifth."""
    found = Fake([i % 2 for i in range(images)])
    monkeypatch.setattr("tutelage.data.splits.open_source", lambda *_: found)
    monkeypatch.setattr("tutelage.data.splits.parts_of", lambda *_: ())
    recipe = DataRecipe(train="fake", drop_duplicates=False)
    splits = make_splits(recipe)
    assert len(splits.val) == val
    assert f"{val:,} of {images:,} images" in splits.val_share.why
    chosen = splits.val_share.fraction
    again = make_splits(recipe.model_copy(update={"val_fraction": chosen}))
    assert (again.val_share, again.record()) == (None, splits.record())


def test_only_images_that_val_takes_from_are_counted(tmp_path):
    train, val = tree(tmp_path / "a", {"cat": 40, "dog": 40}), tree(tmp_path / "b", {"cat": 10, "dog": 10})
    own = make_splits(DataRecipe(train=train, val=val, drop_duplicates=False))
    assert (len(own.val), own.val_share) == (20, None)
    shared = make_splits(DataRecipe(train=train, val=val, test=val, drop_duplicates=False))
    assert (len(shared.val), len(shared.test), shared.val_share.fraction) == (4, 16, 0.2)


def test_val_folder_reports_and_train_is_parted_in_two(tmp_path):
    tree(tmp_path / "train", {"cat": 20, "dog": 20})
    tree(tmp_path / "val", {"cat": 5, "dog": 5})
    splits = make_splits(DataRecipe(train=f"folder:{tmp_path}", val_fraction=0.25))
    assert all(name.startswith("val/") for name in splits.test.ids)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 10, 10)
    assert splits.val.labels.tolist() == [0] * 5 + [1] * 5


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        tree(tmp_path / part, {"cat": count, "dog": count})
    splits = make_splits(DataRecipe(train=f"folder:{tmp_path}"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 6, 4)
    named = make_splits(DataRecipe(train=f"folder:{tmp_path}", test=f"folder:{tmp_path}/val"))
    assert (len(named.train), len(named.val), len(named.test)) == (10, 2, 6)


def test_an_unlabelled_test_folder_does_not_report(tmp_path):
    tree(tmp_path / "train", {"cat": 6, "dog": 6})
    tree(tmp_path / "val", {"cat": 3, "dog": 3})
    tree(tmp_path / "test", {".": 4})
    splits = make_splits(DataRecipe(train=f"folder:{tmp_path}"))
    assert splits.test.images.name.endswith("#val")


def test_a_fifth_of_val_chooses_and_four_fifths_report(tmp_path):
    tree(tmp_path / "train", {"cat": 10, "dog": 10})
    tree(tmp_path / "val", {"cat": 20, "dog": 20})
    spec = f"folder:{tmp_path}"
    for other in (f"{spec}#val", f"{spec}/val"):
        recipe = DataRecipe(train=spec, val=f"{spec}#val", test=other, val_fraction=0.2)
        if other.endswith("#val"):
            splits = make_splits(recipe)
            assert (len(splits.train), len(splits.val), len(splits.test)) == (20, 8, 32)
            assert np.bincount(splits.val.labels).tolist() == [4, 4]
            assert not ids(splits.val) & ids(splits.test)
        else:
            same = make_splits(recipe)
            assert not {i.removeprefix("val/") for i in same.val.ids} & {
                i.removeprefix("val/") for i in same.test.ids
            }


def test_sources_of_their_own_keep_the_class_order_of_train(tmp_path):
    train = tree(tmp_path / "a", {"ape": 4, "cat": 4, "dog": 4})
    val = tree(tmp_path / "b", {"cat": 3, "dog": 3})
    test = tree(tmp_path / "c", {"dog": 2})
    splits = make_splits(DataRecipe(train=train, val=val, test=test))
    assert splits.classes == ("ape", "cat", "dog")
    assert splits.val.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert splits.test.labels.tolist() == [2, 2]
    assert splits.val.classes == splits.test.classes == splits.classes


def test_unlabelled_images_are_distilled_on(tmp_path):
    labelled = tree(tmp_path / "a", {"cat": 10, "dog": 10})
    flat = tree(tmp_path / "b", {".": 7})
    splits = make_splits(DataRecipe(train=labelled, unlabelled=flat))
    assert splits.unlabelled is not None
    assert splits.unlabelled.labels.tolist() == [-1] * 7
    both = join(splits.train, splits.unlabelled)
    assert len(both) == len(splits.train) + 7
    assert both.labels.tolist() == splits.train.labels.tolist() + [-1] * 7
    assert both.image(len(both) - 1).tobytes() == splits.unlabelled.image(6).tobytes()
    assert both.image(0).tobytes() == splits.train.image(0).tobytes()
    assert len(set(both.ids)) == len(both)
    only = make_splits(DataRecipe(train=flat, val=labelled, test=labelled))
    assert only.classes == ("cat", "dog")
    assert only.train.labels.tolist() == [-1] * 7


def test_the_labels_of_further_images_are_not_used(tmp_path):
    labelled, more = (tree(tmp_path / name, {"cat": 10, "dog": 10}) for name in "ab")
    Image.new("RGB", (5, 5)).save(tmp_path / "b/cat/other.png")
    splits = make_splits(DataRecipe(train=labelled, unlabelled=more))
    assert set(splits.unlabelled.labels.tolist()) == {-1}
    assert splits.record()["parts"]["unlabelled"]["labelled"] == 0


def test_few_labels_are_so_many_of_each_class_and_no_image_is_lost():
    full = make_splits(DataRecipe(train="digits"))
    few, more = (make_splits(DataRecipe(train="digits", labels_per_class=n)) for n in (5, 9))
    for count, splits in ((5, few), (9, more)):
        assert np.bincount(splits.train.labels).tolist() == [count] * 10
        assert ids(splits.train) | ids(splits.unlabelled) == ids(full.train)
        assert not ids(splits.train) & ids(splits.unlabelled)
        assert set(splits.unlabelled.labels.tolist()) == {-1}
        assert (ids(splits.val), ids(splits.test)) == (ids(full.val), ids(full.test))
    assert ids(few.train) < ids(more.train)
    other = make_splits(DataRecipe(train="digits", labels_per_class=5, split_seed=1))
    assert ids(other.train) != ids(few.train)
    assert few.train.digest() != make_splits(DataRecipe(train="digits")).train.digest()


def test_few_labels_and_further_images_are_unlabelled_together(tmp_path):
    spec = tree(tmp_path / "a", {"cat": 20, "dog": 4})
    flat = tree(tmp_path / "b", {".": 7})
    splits = make_splits(DataRecipe(train=spec, unlabelled=flat, labels_per_class=5))
    assert np.bincount(splits.train.labels).tolist() == [5, 2]  # a class that has fewer keeps what it has
    assert len(splits.unlabelled) == 24 - len(splits.val) - len(splits.test) - 7 + 7
    assert set(splits.unlabelled.labels.tolist()) == {-1}


def test_the_teacher_has_images_of_its_own(tmp_path):
    splits = make_splits(DataRecipe(train="digits#student", teacher="digits#teacher", labels_per_class=10))
    roles = (splits.train, splits.val, splits.test, splits.unlabelled, splits.teacher)
    assert sum(len(part) for part in roles) == 1797 == len(set().union(*(ids(part) for part in roles)))
    assert len(splits.teacher) == 599
    assert np.bincount(splits.teacher.labels).min() > 50  # all labels are used, however few the student has
    assert splits.record()["parts"]["teacher"]["labelled"] == 599
    labelled = tree(tmp_path / "a", {"cat": 9, "dog": 9})
    more = tree(tmp_path / "b", {"train/dog": 5, "train/cat": 5, "val/cat": 2})
    assert len(make_splits(DataRecipe(train=labelled, teacher=more)).teacher) == 10


def test_images_that_the_teacher_may_not_have(tmp_path):
    assert "these images are train, val, test images already" in refusal(train="digits", teacher="digits")
    assert "is in data.test too" in refusal(train="digits#student", teacher="digits")
    labelled = tree(tmp_path / "a", {"cat": 9, "dog": 9})
    assert "none of its images has a label" in refusal(train=labelled, teacher=tree(tmp_path / "b", {".": 4}))
    assert "its class 'cow' is not in" in refusal(train=labelled, teacher=tree(tmp_path / "c", {"cow": 4}))


def test_copies_of_test_images_are_not_shown_to_the_teacher(tmp_path):
    spec = tree(tmp_path / "a", {"train/cat": 9, "train/dog": 9, "test/cat": 3, "test/dog": 3})
    own = tree(tmp_path / "b", {"cat": 3, "dog": 3})
    image = Image.effect_noise((40, 40), 50).convert(
        "RGB"
    )  # a file of more than the few bytes that are not compared
    for place in ("a/test/cat/noise.png", "b/cat/noise.png"):
        image.save(tmp_path / place)
    splits = make_splits(DataRecipe(train=spec, teacher=own))
    assert "cat/noise.png" not in ids(splits.teacher)
    assert any(note.startswith(f"data.teacher={own}: 1 copy") for note in splits.notes)


def test_all_labels_used_change_nothing():
    full, plenty = (make_splits(DataRecipe(train="digits", labels_per_class=n)) for n in (None, 10_000))
    assert full.record() == plenty.record()
    assert plenty.unlabelled is None


class Partly(Fake):
    """Every fourth image has no label."""

    def __init__(self) -> None:
        super().__init__([(-1, 0, 1, 1)[i % 4] for i in range(80)])

    def place(self, index: int) -> str:
        return f"{index}"


def test_images_without_a_label_are_all_for_training(monkeypatch):
    images = Partly()
    monkeypatch.setattr("tutelage.data.splits.open_source", lambda *_: images)
    monkeypatch.setattr("tutelage.data.splits.parts_of", lambda *_: ())
    splits = make_splits(DataRecipe(train="fake", val_fraction=0.1, test_fraction=0.2))
    assert (len(splits.val), len(splits.test)) == (6, 12)  # of the 60 that have labels
    assert all(part.labels.min() >= 0 for part in (splits.train, splits.val, splits.test))
    assert splits.unlabelled.ids == [f"image-{i}" for i in range(0, 80, 4)]


def test_few_labels_of_images_without_any(tmp_path):
    flat, labelled = tree(tmp_path / "a", {".": 9}), tree(tmp_path / "b", {"cat": 9, "dog": 9})
    line = refusal(train=flat, val=labelled, test=labelled, labels_per_class=5)
    assert "data.labels_per_class=5: no image of" in line


def test_limit_keeps_the_classes_in_proportion():
    splits = make_splits(DataRecipe(train="digits", limit=50))
    for part in (splits.train, splits.val, splits.test):
        assert len(part) == 50
        assert np.bincount(part.labels).min() >= 4


@pytest.mark.parametrize("limit", [None, 40])
def test_val_is_limited_and_what_it_leaves_is_trained_on(limit):
    everything = make_splits(DataRecipe(train="digits", val_limit=None, limit=limit))
    splits = make_splits(DataRecipe(train="digits", val_limit=30, limit=limit))
    assert len(splits.val) == 30
    assert np.bincount(splits.val.labels, minlength=10).min() >= 2
    assert ids(splits.val) < ids(make_splits(DataRecipe(train="digits", val_limit=None)).val)
    assert ids(splits.test) == ids(everything.test)
    if limit is None:
        assert len(splits.train) == len(everything.train) + len(everything.val) - 30
        assert ids(splits.train) | ids(splits.val) == ids(everything.train) | ids(everything.val)
    (note,) = [note for note in splits.notes if "data.val_limit=30" in note]
    assert "30 of the 300 images" in note
    assert "the others are for training" in note
    assert splits.record()["notes"] == list(splits.notes)


def test_a_val_of_its_own_is_limited_and_the_rest_of_it_is_not_used(tmp_path):
    train, val = tree(tmp_path / "a", {"cat": 9, "dog": 9}), tree(tmp_path / "b", {"cat": 20, "dog": 10})
    recipe = DataRecipe(train=train, val=val, val_limit=6, drop_duplicates=False)
    splits = make_splits(recipe)
    assert np.bincount(splits.val.labels).tolist() == [4, 2]
    (note,) = [note for note in splits.notes if "data.val_limit=6" in note]
    assert "6 of the 30 images" in note
    assert "the others are not used" in note
    assert len(make_splits(recipe.model_copy(update={"val_limit": None})).val) == 30


def test_a_limit_of_val_that_is_not_reached_changes_nothing():
    assert DataRecipe().val_limit == 10_000
    plain, limited = (
        make_splits(DataRecipe(train="digits", val_limit=most)).record() for most in (None, 300)
    )
    assert plain == limited
    assert make_splits(DataRecipe(train="digits", limit=20, val_limit=20)).record()["notes"] == []


# --- the record -----------------------------------------------------------------------------------------


def test_the_record_tells_parts_apart_and_is_the_same_each_time():
    first, again = (json.dumps(make_splits(DataRecipe(train="digits")).record()) for _ in range(2))
    other = json.dumps(make_splits(DataRecipe(train="digits", split_seed=1)).record())
    assert first == again != other
    record = json.loads(first)
    assert record["classes"] == list("0123456789")
    assert {part["source"] for part in record["parts"].values()} == {"digits"}
    assert sum(part["size"] for part in record["parts"].values()) == 1797
    assert len({part["digest"] for part in record["parts"].values()}) == 3


def test_a_changed_file_changes_the_digest(tmp_path):
    spec = tree(tmp_path / "a", {"cat": 10, "dog": 10})
    before = make_splits(DataRecipe(train=spec)).record()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a/cat/00.png")
    assert make_splits(DataRecipe(train=spec)).record() != before


# --- refusals -------------------------------------------------------------------------------------------


def test_one_class_only(tmp_path):
    assert "has only one class (cat)" in refusal(train=tree(tmp_path / "a", {"cat": 9}))


def test_a_class_that_train_does_not_know(tmp_path):
    train = tree(tmp_path / "a", {"zebra": 9, "cat": 9})
    line = refusal(train=train, val=tree(tmp_path / "b", {"zebras": 3, "cat": 3}))
    assert "its class 'zebras' is not in" in line
    assert "did you mean 'zebra'?" in line


def test_without_any_label_the_classes_are_the_teachers(tmp_path):
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        tree(tmp_path / "parts" / part, {".": count})
    flat = tree(tmp_path / "flat", {".": 20})
    assert [len(s) for s in parts_of_splits(flat)] == [12, 4, 4]
    assert [len(s) for s in parts_of_splits(f"folder:{tmp_path}/parts")] == [8, 3, 2]
    splits = make_splits(DataRecipe(train=flat)).with_classes(("a", "b"))
    assert splits.classes == splits.train.classes == splits.test.classes == ("a", "b")
    assert not any(part.labelled for part in (splits.train, splits.val, splits.test))


def parts_of_splits(train: str) -> list:
    splits = make_splits(DataRecipe(train=train))
    assert splits.classes == ()
    assert splits.unlabelled is None
    return [splits.train, splits.val, splits.test]


def test_no_labels_where_they_are_needed(tmp_path):
    flat = tree(tmp_path / "a", {".": 9})
    line = refusal(train=tree(tmp_path / "b", {"cat": 9, "dog": 9}), val=flat)
    assert "data.val" in line
    assert "have no labels" in line


def test_an_image_in_two_parts(tmp_path):
    whole_tree = tree(tmp_path / "a", {"cat": 9, "dog": 9})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/cat").symlink_to(tmp_path / "a/cat")
    line = refusal(train=whole_tree, test=f"folder:{tmp_path}/b")
    assert "is in data.train too" in line
    assert "unlabelled" in refusal(train="digits", unlabelled="digits")


def test_a_part_that_would_be_empty(tmp_path):
    assert "is left for it" in refusal(train=tree(tmp_path / "a", {"cat": 1, "dog": 1}))


def test_whole_is_everything():
    part = whole(open_source("digits"))
    assert len(part) == 1797
    assert part.labels.tolist() == open_source("digits").labels.tolist()


# --- real photographs -----------------------------------------------------------------------------------


def test_tiny_imagenet_in_small(shared_data: Path, tmp_path: Path) -> None:
    """The study's situation: val/ reports, train/ is parted in two."""
    with tarfile.open(shared_data / "tiny-imagenet-mini.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    splits = make_splits(DataRecipe(train=f"folder:{tmp_path}/tiny-imagenet-mini"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9000, 1000, 5000)
    assert len(splits.classes) == 200
    assert set(np.bincount(splits.val.labels)) == {5}
