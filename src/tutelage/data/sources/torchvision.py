"""Data sets that torchvision downloads and checks by their digests: ``torchvision:FashionMNIST``.

They are kept for all runs in ``tutelage/torchvision`` below the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.data.decode import decode, upright_rgb
from tutelage.data.sources.base import ImageSet, canonical_part
from tutelage.data.sources.names import label_indices

TRAIN_OR_NOT = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST = {part: {"split": part} for part in ("train", "val", "test")}


@dataclass(frozen=True)
class Known:
    """What has to be known of a class of torchvision, since these differ.

    Attributes:
        parts: the arguments that select each part; {}: it is one set.
        megabytes: of the download, about.
        licence: what its authors say about its use, in a few words.
        arguments: further ones.
    """

    parts: Mapping[str, Mapping[str, Any]]
    megabytes: int
    licence: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


KNOWN = {
    "CIFAR10": Known(TRAIN_OR_NOT, 170, "none stated by its authors"),
    "CIFAR100": Known(TRAIN_OR_NOT, 169, "none stated by its authors"),
    "DTD": Known(TRAIN_VAL_TEST, 625, "for research"),
    "EuroSAT": Known({}, 94, "MIT"),
    "FGVCAircraft": Known(TRAIN_VAL_TEST, 2753, "for non-commercial research"),
    "FashionMNIST": Known(TRAIN_OR_NOT, 31, "MIT"),
    "Flowers102": Known(TRAIN_VAL_TEST, 345, "none stated by its authors"),
    "Food101": Known(TRAIN_TEST, 4996, "for research; photographs of Foodspotting"),
    "GTSRB": Known(TRAIN_TEST, 276, "none stated by its authors"),
    "KMNIST": Known(TRAIN_OR_NOT, 21, "CC BY-SA 4.0"),
    "MNIST": Known(TRAIN_OR_NOT, 12, "CC BY-SA 3.0"),
    "OxfordIIITPet": Known({"train": {"split": "trainval"}, "test": {"split": "test"}}, 811, "CC BY-SA 4.0"),
    "STL10": Known(TRAIN_TEST, 2640, "none stated by its authors"),
    "SVHN": Known(TRAIN_TEST, 246, "for non-commercial use"),
}


class Torchvision(ImageSet):
    """One part of a data set of torchvision. The id of each image is its part and its number."""

    def __init__(self, name: str, where: str, part: str | None, dataset: Any) -> None:
        self._dataset = dataset
        names, labels = _labels(dataset)
        ids = [f"{part or 'all'}/{number}" for number in range(len(dataset))]
        self._files = _files(dataset)
        self.decoded = self._files is None  # of what lies in memory, a decoded copy would gain nothing
        super().__init__(name, f"torchvision:{where}" + (f"#{part}" if part else ""), ids, names, labels)

    def image(self, index: int) -> Image.Image:
        """One image as RGB."""
        if self._files is not None:
            return decode(self._files[int(index)], self.ids[index], self.max_pixels)
        return upright_rgb(self._dataset[int(index)][0])

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first bytes of one file; None where it cannot be read, or the set is an array."""
        if self._files is None:
            return None
        try:
            with open(self._files[int(index)], "rb") as file:
                return file.read(count)
        except OSError:
            return None


def parts(where: str) -> tuple[str, ...]:
    """The parts of a data set; none where it is one set."""
    return tuple(known_set(where).parts)


def load(where: str, part: str | None) -> Torchvision:
    """Open a part of a data set; what is not in the cache is downloaded first."""
    known = known_set(where)
    name = f"torchvision:{where}"
    if part is not None:
        part, name = canonical_part(part), f"{name}#{part}"
        if part not in known.parts:
            there = ", ".join(known.parts) or "none, since it is one set"
            raise TutelageError(f"{name}: no such part; it has {there}")
    return Torchvision(name, where, part, opened(where, part))


def cache_folder() -> Path:
    """The folder that downloaded data sets are kept in."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "tutelage" / "torchvision"


def opened(where: str, part: str | None) -> Any:
    """Open torchvision's data set, downloaded and checked by its digest where it is not in the cache.

    Raises:
        TutelageError: it cannot be downloaded or written, or a file of it has another digest.
    """
    from torchvision import datasets

    known, folder = known_set(where), cache_folder()
    kind = getattr(datasets, where)
    # a folder for each, since some unpack into one without a name of their own
    root = folder / where.lower()
    arguments = {**known.arguments, **(known.parts[part] if part else {})}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{where.lower()}.lock"):  # processes of one machine download once
            try:
                return kind(str(root), download=False, **arguments)
            except (RuntimeError, OSError):
                with contextlib.redirect_stdout(io.StringIO()):
                    return kind(str(root), download=True, **arguments)
    except Exception as error:  # a download, a checksum, an archive: each library raises its own
        raise TutelageError(
            f"torchvision:{where}: not in {root}, and it cannot be downloaded ({one_line(error)[:160]}); go online "
            f"(about {known.megabytes:,} MB), or copy that folder from a machine that has it"
        ) from None


def known_set(where: str) -> Known:
    """Return what is known of a data set.

    Raises:
        TutelageError: there is no such set; the line names the nearest one.
    """
    if where in KNOWN:
        return KNOWN[where]
    by_lower = {name.lower(): name for name in KNOWN}
    close = by_lower.get(where.lower()) or nearest(where, list(KNOWN), cutoff=0.5)
    hint = f"did you mean {close!r}? There" if close else "there"
    raise TutelageError(f"torchvision:{where}: no such data set; {hint} are {', '.join(KNOWN)}")


def _labels(dataset: Any) -> tuple[list[str] | None, np.ndarray | None]:
    """(class names, int64 labels), without decoding an image."""
    found = next(
        getattr(dataset, name)
        for name in ("targets", "labels", "_labels", "_samples")
        if hasattr(dataset, name)
    )
    numbers = [int(one[-1] if isinstance(one, tuple) else one) for one in found]
    classes = getattr(dataset, "classes", None)
    if classes is None or len(set(classes)) != len(classes):
        return label_indices([str(number) for number in numbers])
    return [str(one) for one in classes], np.array(numbers, np.int64)


def _files(dataset: Any) -> list[Path] | None:
    """The file of each image; None where the images lie in memory."""
    if hasattr(dataset, "data"):
        return None
    names = ("_image_files", "_images", "samples", "_samples")
    found = next(getattr(dataset, name) for name in names if hasattr(dataset, name))
    return [Path(one[0] if isinstance(one, tuple) else one) for one in found]
