"""What is measured of pictures, which of them are the same, and what the list leaves out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tests.helpers.photographs import pieces

from tutelage.core.recipe import DataRecipe
from tutelage.data.doctor.classes import class_findings, class_lines
from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.copies import copy_findings, same_pictures
from tutelage.data.doctor.finding import Item, alone
from tutelage.data.doctor.leave_out import text_of
from tutelage.data.doctor.odd import pictures_that_show_little, unreadable
from tutelage.data.doctor.pictures import MEASURES, Pictures, measure, measure_all
from tutelage.data.splits import make_splits


def folder(root: Path, images: dict[str, Image.Image]) -> str:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return str(root)


def measured(*images: Image.Image) -> Pictures:
    rows = list(zip(*(measure(image) for image in images), strict=True))
    arrays = {name: np.array(rows[place], kind) for place, (name, (kind, _)) in enumerate(MEASURES.items())}
    return Pictures(**arrays, unreadable={})


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def different(count: int) -> list[Image.Image]:
    both = pieces()
    return [image for pair in zip(both["flower"], both["temple"], strict=False) for image in pair][-count:]


WAYS = {
    "equal": lambda image: image.copy(),
    "quality 30": lambda image: jpeg(image, 30),
    "half": lambda image: image.resize((32, 32), Image.Resampling.LANCZOS),
    "twice": lambda image: image.resize((128, 128), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_that_was_saved_again_is_the_same_picture(way: str) -> None:
    images = different(12)
    copies = [WAYS[way](image) for image in images]
    assert same_pictures(measured(*images, *copies)) == [[n, n + 12] for n in range(12)]


def test_pieces_of_one_photograph_are_different_pictures() -> None:
    assert same_pictures(measured(*different(40))) == []


def test_pictures_of_one_colour_are_copies_only_where_all_pixels_are_equal() -> None:
    greys = [Image.new("RGB", (50, 50), (grey,) * 3) for grey in (100, 101, 100)]
    assert same_pictures(measured(*greys)) == [[0, 2]]


def test_many_equal_pictures_are_one_group() -> None:
    image = different(1)[0]
    assert same_pictures(measured(*[image] * 30, *[jpeg(image, 60)] * 30)) == [[*range(60)]]


def test_light_contrast_and_sharpness() -> None:
    image = different(1)[0]
    plain, dark, soft = (
        measured(one)
        for one in (
            image,
            image.point(lambda value: value * 0.1),
            image.filter(ImageFilter.GaussianBlur(6)),
        )
    )
    assert plain.light[0] > 0.4 > 0.11 > dark.light[0]
    assert plain.contrast[0] > 5 * dark.contrast[0]
    assert dark.sharpness[0] > plain.sharpness[0] / 3  # little contrast is not blur
    assert soft.sharpness[0] < plain.sharpness[0] / 10


def test_a_picture_of_one_pixel_is_measured() -> None:
    found = measured(Image.new("RGB", (1, 1), "red"), Image.new("RGB", (2, 300), "red"))
    assert found.width.tolist() == [1, 2]
    assert np.isfinite(found.sharpness).all()


def test_all_images_are_measured_also_by_several_processes(tmp_path: Path) -> None:
    made = {f"a/{number:03}.png": Image.new("RGB", (number % 7 + 1, 5), "red") for number in range(600)}
    source = folder(tmp_path, made | {"b/0.png": Image.new("RGB", (3, 3), "blue")})
    (tmp_path / "a" / "300.png").write_bytes(b"no image")
    images = Collection.of(make_splits(DataRecipe(train=source)))
    found = measure_all(images.subset())
    names = [images.id(number) for number in range(len(images))]
    widths = {
        name: 0 if name == "a/300.png" else 3 if name == "b/0.png" else int(name[2:5]) % 7 + 1
        for name in names
    }
    assert dict(zip(names, found.width.tolist(), strict=True)) == widths
    (finding,) = unreadable(images, found)
    assert [images.id(item.number) for item in finding.items] == ["a/300.png"]


def test_copies_are_sorted_by_what_they_spoil(tmp_path: Path) -> None:
    one, two, three, four = different(4)
    noise = np.random.default_rng(0)
    more = {
        f"{part}/{name}/{number}.png": Image.fromarray(noise.integers(0, 256, (40, 40, 3), np.uint8))
        for part in ("train", "val", "test")
        for name in "ab"
        for number in range(3)
    }
    source = folder(
        tmp_path,
        more
        | {"train/a/one.png": one, "test/a/one.png": one}
        | {"train/b/two.png": two, "val/b/two.png": jpeg(two, 60)}
        | {"train/a/three.png": three, "train/b/three.png": three}
        | {"train/b/four.png": four, "train/b/four-again.png": four},
    )
    images = Collection.of(make_splits(DataRecipe(train=source, drop_duplicates=False)))
    found = copy_findings(images, same_pictures(measure_all(images.subset())))
    assert {
        one.key: [[images.id(item.number) for item in group] for group in one.groups] for one in found
    } == {
        "copies_of_test": [["train/a/one.png", "test/a/one.png"]],
        "copies_of_val": [["train/b/two.png", "val/b/two.png"]],
        "copies_of_two_classes": [["train/a/three.png", "train/b/three.png"]],
        "copies": [["train/b/four-again.png", "train/b/four.png"]],
    }
    text, certain, doubtful = text_of(found, images)
    assert (certain, doubtful) == (5, 0)
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == [
        "train/a/one.png  # same picture as test image test/a/one.png",
        "train/b/two.png  # same picture as val image val/b/two.png",
        "train/a/three.png  # same picture as train/b/three.png, which is labelled b",
        "train/b/three.png  # same picture as train/a/three.png, which is labelled a",
        "train/b/four.png  # same picture as train image train/b/four-again.png",
    ]
    (tmp_path / "list.txt").write_text(text)
    splits = make_splits(DataRecipe(train=source, exclude=str(tmp_path / "list.txt")))
    again = Collection.of(splits)
    assert same_pictures(measure_all(again.subset())) == []


def test_the_list_names_the_part_where_two_sources_have_an_image_of_one_name(tmp_path: Path) -> None:
    images = different(24)
    parts = {
        part: folder(
            tmp_path / part,
            {f"{'ab'[number % 2]}/{number}.png": image for number, image in enumerate(images[start:][:8])},
        )
        for part, start in (("train", 0), ("val", 8), ("test", 16))
    }
    images[0].save(tmp_path / "val" / "a" / "2.png")
    recipe = DataRecipe(train=parts["train"], val=parts["val"], test=parts["test"], drop_duplicates=False)
    found = Collection.of(make_splits(recipe))
    text, *_ = text_of(copy_findings(found, same_pictures(measure_all(found.subset()))), found)
    assert "\ntrain:a/0.png  # same picture as val image a/2.png\n" in text
    (tmp_path / "list.txt").write_text(text)
    splits = make_splits(recipe.model_copy(update={"exclude": str(tmp_path / "list.txt")}))
    assert "a/0.png" not in splits.train.ids
    assert "a/0.png" in splits.val.ids


def test_names_that_a_list_cannot_hold_stay_comments(tmp_path: Path) -> None:
    image = different(1)[0]
    source = folder(tmp_path, {f"{name}.png": image for name in ("a/1", "a/2  # x", "a/3\n4", "b/1")})
    recipe = DataRecipe(train=source, test_fraction=0.25, val_fraction=0.25, drop_duplicates=False)
    images = Collection.of(make_splits(recipe))
    text, *_ = text_of(copy_findings(images, same_pictures(measure_all(images.subset()))), images)
    named = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.partition("  # same")[0] in {"a/1.png", "b/1.png"} for line in named)


def test_what_is_not_certain_is_a_comment_in_the_list(tmp_path: Path) -> None:
    image = different(1)[0]
    source = folder(tmp_path, {f"{name}/{number}.png": image for name in "ab" for number in range(9)})
    images = Collection.of(make_splits(DataRecipe(train=source, drop_duplicates=False)))
    items = [Item(0, leave_out="broken"), Item(1, leave_out="odd", certain=False), Item(0, leave_out="again")]
    text, certain, doubtful = text_of(alone("x", "Odd", "look", "", items), images)
    assert (certain, doubtful) == (1, 1)
    assert f"\n{images.id(0)}  # broken\n# {images.id(1)}  # odd\n" in text
    assert "# Odd: 2 images. Look at each, and remove the # before those to leave out\n" in text


def test_odd_pictures(tmp_path: Path) -> None:
    image = different(1)[0]
    made = {f"a/{n}.png": one for n, one in enumerate(different(8))}
    made |= {
        "b/dark.png": image.point(lambda value: value * 0.1),
        "b/plain.png": Image.new("RGB", (80, 80), "grey"),
        "b/blurred.png": image.filter(ImageFilter.GaussianBlur(10)),
        "b/tiny.png": image.resize((10, 10)),
        "b/odd_shape.png": image.resize((160, 33)),
    }
    images = Collection.of(make_splits(DataRecipe(train=folder(tmp_path, made))))
    found = pictures_that_show_little(images, measure_all(images.subset()))
    named = {one.key: [images.id(item.number) for item in one.items] for one in found}
    assert named == {key: [f"b/{key}.png"] for key in ("dark", "plain", "blurred", "tiny", "odd_shape")}
    assert not any(item.leave_out for one in found for item in one.items)


def test_classes_are_counted_from_the_splits(tmp_path: Path) -> None:
    made = {
        f"{name}/{n}.png": Image.new("RGB", (9, 9))
        for name, count in (("a", 40), ("b", 4))
        for n in range(count)
    }
    source = folder(tmp_path, made | {"c/0.png": Image.new("RGB", (9, 9))})
    splits = make_splits(DataRecipe(train=source))
    found = {one.key: one.classes for one in class_findings(splits)}
    assert found["one_image"] == ("c",)
    assert found["small_class"] == ("b",)
    lines = class_lines(splits)
    assert "data: class of one image: 1 class (c)" in lines
    assert "data: very small class: 1 class (b)" in lines
    assert class_lines(make_splits(DataRecipe(train="digits"))) == []
