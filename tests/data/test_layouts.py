"""The published layouts of well-known data sets: read, with their own parts and classes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.base import open_source, parts_of
from tutelage.data.splits import make_splits

Parts = dict[str, dict[str, int]]  # images of each class by part
made = iter(range(10**9))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(made)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    path.write_bytes(stream.getvalue())


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def imagenette(root: Path) -> Parts:
    for part in ("train", "val"):
        for cls in ("n01440764", "n02102040"):
            for i in range(6):
                picture(root / "imagenette2-160" / part / cls / f"{cls}_{i}.JPEG")
    write(root / "imagenette2-160" / "noisy_imagenette.csv", "path,noisy_labels_0")
    return {part: {"n01440764": 6, "n02102040": 6} for part in ("train", "val")}


def imagenet(root: Path) -> Parts:
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    for cls in ("n01440764", "n02102040"):
        for i in range(6):
            picture(data / "train" / cls / f"{cls}_{i}.JPEG")
    for i in range(4):
        picture(data / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
        picture(data / "test" / f"ILSVRC2012_test_{i:08}.JPEG")
        write(root / "ILSVRC/Annotations/CLS-LOC/val" / f"ILSVRC2012_val_{i:08}.xml", "<annotation/>")
    classes = ("n02102040", "n01440764", "n01440764", "n01440764")
    rows = [f"ILSVRC2012_val_{i:08},{cls} 1 2 3 4 {cls} 5 6 7 8" for i, cls in enumerate(classes)]
    write(root / "LOC_val_solution.csv", "ImageId,PredictionString", *rows)
    return {"train": {"n01440764": 6, "n02102040": 6}, "val": {"n01440764": 3, "n02102040": 1}, "test": {}}


def tiny_imagenet(root: Path) -> Parts:
    top = root / "tiny-imagenet-200"
    for cls in ("n01443537", "n01629819"):
        for i in range(6):
            picture(top / "train" / cls / "images" / f"{cls}_{i}.JPEG")
        write(top / "train" / cls / f"{cls}_boxes.txt", f"{cls}_0.JPEG\t0\t0\t62\t62")
    for i in range(4):
        picture(top / "val" / "images" / f"val_{i}.JPEG")
        picture(top / "test" / "images" / f"test_{i}.JPEG")
    rows = [f"val_{i}.JPEG\t{'n01629819' if i == 2 else 'n01443537'}\t0\t32\t44\t62" for i in range(4)]
    write(top / "val" / "val_annotations.txt", *rows)
    write(top / "wnids.txt", "n01443537", "n01629819")
    return {"train": {"n01443537": 6, "n01629819": 6}, "val": {"n01443537": 3, "n01629819": 1}, "test": {}}


def cifar_folders(root: Path) -> Parts:
    for part, count in (("train", 6), ("test", 3)):
        for cls in ("airplane", "frog"):
            for i in range(count):
                picture(root / "cifar10" / part / cls / f"{i:04}.png")
    write(root / "cifar10" / "labels.txt", "airplane", "frog")
    return {"train": {"airplane": 6, "frog": 6}, "test": {"airplane": 3, "frog": 3}}


def cifar_by_file_name(root: Path) -> Parts:
    for part, count in (("train", 6), ("test", 3)):
        for i in range(2 * count):
            picture(root / "cifar" / part / f"{i}_{('airplane', 'frog')[i % 2]}.png")
    write(root / "cifar" / "labels.txt", "airplane", "frog")
    return {"train": {"airplane": 6, "frog": 6}, "test": {"airplane": 3, "frog": 3}}


def cifar_of_kaggle(root: Path) -> Parts:
    for i in range(1, 13):
        picture(root / "train" / f"{i}.png")
        picture(root / "test" / f"{i}.png")
    write(root / "trainLabels.csv", "id,label", *(f"{i},{('frog', 'airplane')[i % 2]}" for i in range(1, 13)))
    return {"train": {"airplane": 6, "frog": 6}, "test": {}}


def caltech101(root: Path) -> Parts:
    for cls in ("accordion", "yin_yang"):
        for i in range(6):
            picture(root / "caltech-101" / "101_ObjectCategories" / cls / f"image_{i:04}.jpg")
            write(root / "caltech-101" / "Annotations" / cls / f"annotation_{i:04}.mat", "MATLAB")
    return {"": {"accordion": 6, "yin_yang": 6}}


def oxford_pets(root: Path) -> Parts:
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for number, cls in enumerate(("Abyssinian", "american_bulldog")):
        for i in range(9):
            picture(root / "images" / f"{cls}_{i}.jpg")
            picture(root / "annotations" / "trimaps" / f"{cls}_{i}.png")
            lists["trainval" if i < 6 else "test"].append(f"{cls}_{i} {number + 1} {number + 1} 1")
    for name, lines in lists.items():
        write(root / "annotations" / f"{name}.txt", *lines)
    return {part: {"Abyssinian": n, "american_bulldog": n} for part, n in (("train", 6), ("test", 3))}


def flowers102(root: Path) -> Parts:
    from scipy.io import savemat

    for i in range(1, 13):
        picture(root / "jpg" / f"image_{i:05}.jpg")
    savemat(root / "imagelabels.mat", {"labels": [[1 + i % 2 for i in range(1, 13)]]})
    savemat(
        root / "setid.mat", {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [[7, 8, 9, 10, 11, 12]]}
    )
    return {part: {"1": n, "2": n} for part, n in (("train", 2), ("val", 1), ("test", 3))}


def food101(root: Path) -> Parts:
    top = root / "food-101"
    for part, numbers in (("train", range(6)), ("test", range(6, 9))):
        for cls in ("apple_pie", "waffles"):
            for i in numbers:
                picture(top / "images" / cls / f"{i}.jpg")
        write(
            top / "meta" / f"{part}.txt", *(f"{cls}/{i}" for cls in ("apple_pie", "waffles") for i in numbers)
        )
    write(top / "meta" / "classes.txt", "apple_pie", "waffles")
    return {part: {"apple_pie": n, "waffles": n} for part, n in (("train", 6), ("test", 3))}


def stanford_dogs(root: Path) -> Parts:
    for cls in ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"):
        for i in range(6):
            picture(root / "Images" / cls / f"{cls[:9]}_{i}.jpg")
            write(root / "Annotation" / cls / f"{cls[:9]}_{i}", "<annotation/>")
    return {"": {"n02085620-Chihuahua": 6, "n02085782-Japanese_spaniel": 6}}


def stanford_dogs_with_lists(root: Path) -> Parts:
    from scipy.io import savemat

    (classes,) = stanford_dogs(root).values()
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        names = [f"{cls}/{cls[:9]}_{i}.jpg" for cls in classes for i in numbers]
        savemat(root / f"{part}_list.mat", {"file_list": np.array(names, dtype=object)[:, None]})
    return {part: dict.fromkeys(classes, n) for part, n in (("train", 4), ("test", 2))}


def eurosat(root: Path) -> Parts:
    for cls in ("AnnualCrop", "SeaLake"):
        for i in range(6):
            picture(root / "2750" / cls / f"{cls}_{i}.jpg")
    return {"": {"AnnualCrop": 6, "SeaLake": 6}}


def birds(root: Path) -> Parts:
    names = [f"{cls}/{i}.jpg" for cls in ("001.Albatross", "002.Ani") for i in range(6)]
    for name in names:
        picture(root / "CUB_200_2011" / "images" / name)
        picture(root / "segmentations" / name)
    write(root / "CUB_200_2011" / "images.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    parts = [f"{i} {int('5' not in name)}" for i, name in enumerate(names, 1)]
    write(root / "CUB_200_2011" / "train_test_split.txt", *parts)
    return {part: {"001.Albatross": n, "002.Ani": n} for part, n in (("train", 5), ("test", 1))}


def textures(root: Path) -> Parts:
    for part, i in (("train", 1), ("val", 2), ("test", 3)):
        for cls in ("banded", "woven"):
            picture(root / "dtd" / "images" / cls / f"{cls}_{i}.jpg")
        write(
            root / "dtd" / "labels" / f"{part}1.txt", *(f"{cls}/{cls}_{i}.jpg" for cls in ("banded", "woven"))
        )
    return {part: {"banded": 1, "woven": 1} for part in ("train", "val", "test")}


LAYOUTS = [
    imagenette,
    imagenet,
    tiny_imagenet,
    cifar_folders,
    cifar_by_file_name,
    cifar_of_kaggle,
    caltech101,
    oxford_pets,
    flowers102,
    food101,
    stanford_dogs,
    stanford_dogs_with_lists,
    eurosat,
    birds,
    textures,
]


@pytest.mark.parametrize("build", LAYOUTS)
def test_a_published_layout_is_read(tmp_path: Path, build: Callable[[Path], Parts]) -> None:
    root = tmp_path / "download"
    root.mkdir()
    expected = build(root)
    if build is birds:  # with its masks beside it, the folder named is the one with the lists
        root /= "CUB_200_2011"
    spec = f"folder:{root}"
    assert set(parts_of(spec)) == set(expected) - {""}
    for part, counts in expected.items():
        images = open_source(spec, part or None)
        if not counts:
            assert images.labels is None
            assert len(images) > 0
            continue
        assert images.classes is not None
        assert images.labels is not None
        assert dict(zip(images.classes, np.bincount(images.labels).tolist(), strict=True)) == counts
        assert images.image(0).size == (8, 8)
    splits = make_splits(DataRecipe(train=spec, val_fraction=0.3))
    assert len(splits.classes) == 2
    bare = [part for part, counts in expected.items() if not counts]
    assert [note for note in splits.notes if "have no labels and are not used" in note] == [
        f"{spec}#{part}: its images have no labels and are not used" for part in bare
    ]
    if expected.get("test"):
        assert len(splits.test) == sum(expected["test"].values())


def test_images_that_a_list_names_and_that_are_missing_are_counted(tmp_path: Path) -> None:
    food101(tmp_path)
    (tmp_path / "food-101/images/waffles/3.jpg").unlink()
    (note,) = open_source(str(tmp_path)).notes
    assert "1 image of its list missing: 3.jpg" in note


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    flowers102(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"no MATLAB")
    with pytest.raises(
        TutelageError, match="has the files of flowers102, but its lists cannot be read"
    ) as caught:
        parts_of(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_list_that_lacks_an_image_gives_no_labels(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    picture(tmp_path / "tiny-imagenet-200/val/images/val_9.JPEG")
    assert open_source(str(tmp_path), "val").labels is None
