"""How well-known data sets are laid out where their folders do not name the class: labels and parts in lists.

Each reader takes a folder and returns, for each part, paths of images below it and the class of each; None where the
folder is no such data set.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.sources.base import canonical_part

Listing = dict[str, list[tuple[Path, str]]]
MAX_LIST_BYTES = 200_000_000  # of a list of labels; ImageNet's has 5 MB


def read_layout(root: Path) -> Listing | None:
    """The images of a well-known data set by part, if the folder is one.

    Raises:
        TutelageError: its lists cannot be read.
    """
    for reader in LAYOUTS:
        try:
            found = reader(root)
        except TutelageError:
            raise
        except Exception as error:  # of a damaged list; a reader of MATLAB's files may raise anything
            name = reader.__name__.removeprefix("_")
            raise TutelageError(
                f"folder:{root}: has the files of {name}, but its lists cannot be read ({one_line(error)})"
            ) from None
        if found and any(found.values()):
            return {part: images for part, images in found.items() if images}
    return None


def _food101(root: Path) -> Listing | None:
    """Food-101 (Bossard 2014): ``images/CLASS/N.jpg``, and ``meta/train.txt`` with ``CLASS/N`` in each line."""
    if not (root / "meta" / "train.txt").is_file() or not (root / "images").is_dir():
        return None
    return {
        part: [
            (root / "images" / f"{line}.jpg", line.split("/")[0])
            for line in _lines(root / "meta" / f"{part}.txt")
        ]
        for part in ("train", "test")
    }


def _oxford_pets(root: Path) -> Listing | None:
    """Oxford-IIIT Pet (Parkhi 2012): ``images/CLASS_N.jpg``, and ``annotations/trainval.txt`` of these names."""
    lists = root / "annotations"
    if not (lists / "trainval.txt").is_file() or not (root / "images").is_dir():
        return None
    listing: Listing = {}
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        names = [line.split()[0] for line in _lines(lists / file) if not line.startswith("#")]
        listing[part] = [(root / "images" / f"{name}.jpg", name.rpartition("_")[0]) for name in names]
    return listing


def _flowers102(root: Path) -> Listing | None:
    """Flowers-102 (Nilsback 2008): ``jpg/image_00001.jpg``, ``imagelabels.mat`` and ``setid.mat``."""
    if not (root / "imagelabels.mat").is_file() or not (root / "jpg").is_dir():
        return None
    labels = _mat(root / "imagelabels.mat")["labels"].ravel()
    sets = _mat(root / "setid.mat")
    return {
        part: [
            (root / "jpg" / f"image_{n:05d}.jpg", str(int(labels[n - 1]))) for n in sets[key].ravel().tolist()
        ]
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }


def _stanford_dogs(root: Path) -> Listing | None:
    """Stanford Dogs (Khosla 2011): ``Images/CLASS/N.jpg``, and ``train_list.mat`` where it was unpacked too."""
    lists = next((f for f in (root, root / "lists") if (f / "train_list.mat").is_file()), None)
    if lists is None or not (root / "Images").is_dir():
        return None
    listing: Listing = {}
    for part in ("train", "test"):
        names = [str(cell.item()) for cell in _mat(lists / f"{part}_list.mat")["file_list"].ravel()]
        listing[part] = [(root / "Images" / name, name.split("/")[0]) for name in names]
    return listing


def _cub200(root: Path) -> Listing | None:
    """CUB-200-2011 (Wah 2011): ``images/CLASS/NAME.jpg``, ``images.txt`` and ``train_test_split.txt``."""
    if not (root / "train_test_split.txt").is_file() or not (root / "images.txt").is_file():
        return None
    names = dict(line.split(maxsplit=1) for line in _lines(root / "images.txt"))
    listing: Listing = {"train": [], "test": []}
    for number, trained in (line.split() for line in _lines(root / "train_test_split.txt")):
        name = names[number]
        listing["train" if trained == "1" else "test"].append((root / "images" / name, name.split("/")[0]))
    return listing


def _textures(root: Path) -> Listing | None:
    """DTD (Cimpoi 2014): ``images/CLASS/NAME.jpg``, and ``labels/train1.txt`` of the first of ten splits."""
    if not (root / "labels" / "train1.txt").is_file() or not (root / "images").is_dir():
        return None
    return {
        part: [(root / "images" / n, n.split("/")[0]) for n in _lines(root / "labels" / f"{part}1.txt")]
        for part in ("train", "val", "test")
    }


LAYOUTS: tuple[Callable[[Path], Listing | None], ...] = (
    _food101,
    _oxford_pets,
    _flowers102,
    _stanford_dogs,
    _cub200,
    _textures,
)

BOXES = "LOC_val_solution.csv"  # ImageNet's validation images, of Kaggle: file, "class box class box..."
# Lists of unsorted images, and the part that each describes: a file name, with or without its suffix, its class, and
# anything after them.
LABEL_LISTS = {
    "val_annotations.txt": "val",  # Tiny ImageNet: file, class and box, separated by tabs
    BOXES: "val",
    "trainLabels.csv": "train",  # CIFAR-10 of Kaggle, whose test images have the same file names
    "labels.csv": "train",
}


def labels_of(images: Sequence[Path], top: Path, root: Path) -> list[str] | None:
    """The class of each of some unsorted images.

    They are read from a list of `LABEL_LISTS`, or else from file names such as ``17_frog.png`` where ``labels.txt`` has
    these classes.

    Args:
        images: files below `top`.
        top: the folder of the images, or of a part: a list in it describes them, whatever its name.
        root: the folder that the user named; lists lie in it or below.

    Returns:
        None: there is no list that has all images.

    Raises:
        TutelageError: a list cannot be read.
    """
    for place in (folder for folder in (top, *top.parents) if folder == root or root in folder.parents):
        for name, part in LABEL_LISTS.items():
            if (place == top or canonical_part(top.name) == part) and (
                found := _listed(place / name, images)
            ):
                return found
        if (place / "labels.txt").is_file():
            classes = set(_lines(place / "labels.txt"))
            named = [re.sub(r"^\d+_", "", path.stem) for path in images]
            if set(named) <= classes:
                return named
    return None


def _listed(path: Path, images: Sequence[Path]) -> list[str] | None:
    if not path.is_file():
        return None
    rows = csv.reader(_lines(path), delimiter="," if path.suffix == ".csv" else "\t")
    pairs = [(row[0].strip(), row[1].strip()) for row in rows if len(row) > 1 and row[1].strip()]
    if path.name == BOXES:
        pairs = [(file, boxes.split()[0]) for file, boxes in pairs]
    classes = dict(pairs)
    found = [classes.get(image.name, classes.get(image.stem)) for image in images]
    return None if None in found else [name for name in found if name is not None]


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not empty."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise TutelageError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes, which no list of images is")
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise TutelageError(f"{path}: cannot be read ({error.strerror})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _mat(path: Path) -> Any:
    """The variables of a MATLAB file."""
    from scipy.io import loadmat

    return loadmat(str(path))
