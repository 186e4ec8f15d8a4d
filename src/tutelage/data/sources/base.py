"""Where images come from: ``KIND:WHERE`` with an optional ``#part``, such as ``folder:photos#val``.

A path that exists needs no kind: ``photos#val`` is ``folder:photos#val``, and ``labels.csv`` is ``csv:labels.csv``.
Installed packages add kinds through the entry point group ``tutelage.sources``; each names a `Source`.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import load_plugin, nearest, plugin_names
from tutelage.data.decode import SUFFIXES
from tutelage.data.sources.names import Names, unique_classes

log = logging.getLogger(__name__)
GROUP = "tutelage.sources"  # of the entry points
KINDS = {
    "folder": "tutelage.data.sources.folder",
    "hf": "tutelage.data.sources.huggingface",
    "wds": "tutelage.data.sources.webdataset",
    "csv": "tutelage.data.sources.table",
    "parquet": "tutelage.data.sources.table",
    "zip": "tutelage.data.sources.archive",
    "torchvision": "tutelage.data.sources.torchvision",
    "sklearn": "tutelage.data.sources.sklearn",
    "digits": "tutelage.data.sources.digits",
}
OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".zip": "zip",
}  # of files named without a kind
WRITE = (
    "write a path that exists, folder:PATH, csv:FILE, parquet:FILE, zip:FILE, hf:NAME, wds:PATTERN, torchvision:NAME, "
    "sklearn:NAME or digits, such as folder:photos"
)
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class ImageSet(ABC):
    """A set of images with stable ids and, usually, labels.

    Attributes:
        name: the source as written, e.g. ``folder:photos#val``.
        origin: what the source is once resolved; two sets of one origin hold the same images.
        classes: class names in label order; None when there are no labels.
        ids: one for each image, unique within the source; the same image keeps its id.
        labels: int64, index into `classes`, -1 where an image has none; None when there are no labels.
        decoded: images lie in memory, so that a decoded copy on disk would gain nothing.
        threadsafe: several threads may call `image` and `pixels` at the same time.
        small: images are hardly larger than what the models of a run see, so that whole ones can be handed to a GPU.
        side: largest short side in pixels, where the images are JPEGs that were shrunk to it already; None: others.
        notes: sentences about what was found and not used, such as files that cannot be read.
        max_pixels: largest image to decode, in pixels; None: Pillow's limit.
    """

    decoded = False
    threadsafe = False
    small = False
    side: int | None = None
    notes: tuple[str, ...] = ()
    max_pixels: int | None = None

    def __init__(
        self,
        name: str,
        origin: str,
        ids: Sequence[str],
        classes: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        if len(ids) == 0:
            raise TutelageError(f"{name}: no images found; looked for {' '.join(sorted(SUFFIXES))}")
        self.name = name
        self.origin = origin
        self.ids = ids if isinstance(ids, Names) else Names(ids)
        self.classes: tuple[str, ...] | None = None
        self.labels: np.ndarray | None = None
        if classes is not None and labels is not None and (labels >= 0).any():
            self.classes, self.labels = unique_classes(name, classes, labels)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def pixels(self, index: int) -> np.ndarray:
        """As `image`, uint8 (H, W, 3), not to be written to."""
        return np.asarray(self.image(index))

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first `count` bytes of an encoded image, all of them for -1; None where they cannot be had cheaply.

        Several threads may call it at the same time.
        """
        return None

    def place(self, index: int) -> str:
        """Where an image is stored. Two sets of one kind give the same place for the same image."""
        return f"{self.origin}/{self.ids[index]}"

    def full_name(self, index: int) -> str:
        """A name that no other image of a run has: the path of its file, or its source and id."""
        return f"{self.origin}/{self.ids[index]}"

    def sizes(self) -> np.ndarray | None:
        """Size of each encoded image in bytes (int64), where it is cheap to know. The sizes enter the digest."""
        return None

    def stamp(self) -> str:
        """A text that changes when a file changes, also where its size does not; "" where there is none."""
        return ""

    def digest(self) -> str:
        """A hash of ids, sizes, classes and labels. No image is decoded."""
        if self._digest is None:
            digest = hashlib.sha256("\0".join(self.classes or ()).encode("utf-8", "surrogateescape"))
            self.ids.update(digest)
            for array in (self.labels, self.sizes()):
                digest.update(b"none" if array is None else np.ascontiguousarray(array, np.int64).tobytes())
            self._digest = digest.hexdigest()
        return self._digest


class Source(Protocol):
    """A kind of data source: a module, or any object, with these two functions."""

    def parts(self, where: str) -> tuple[str, ...]:
        """The parts that the source comes in.

        Args:
            where: what was written after the colon.

        Returns:
            Names such as ``("train", "val")``; common names as in `PART_NAMES`. (): the source is one set.

        Raises:
            TutelageError: there is no such source.
        """
        ...

    def load(self, where: str, part: str | None) -> ImageSet:
        """Open the source, without decoding its images.

        Args:
            where: what was written after the colon.
            part: one of `parts`; what was written after ``#``; None: the source is one set.

        Raises:
            TutelageError: there is no such source or part, or it holds no images.
        """
        ...


def open_source(spec: str, part: str | None = None) -> ImageSet:
    """Open ``KIND:WHERE[#part]``, or ``PATH[#part]`` of a folder.

    Args:
        spec: the source; a part named in it wins over `part`.
        part: ``train``, ``val`` or ``test``. None: everything, where the source has no parts, else its
            training part.

    Raises:
        TutelageError: unknown kind or part, nothing there, or no images.
    """
    kind, where, named = _parse(spec)
    part = named or part
    source = _source(kind)
    parts = source.parts(where)
    if part is None and parts:
        part = "train" if "train" in parts else parts[0]
    if part is not None and parts and canonical_part(part) not in parts and part.isidentifier():
        raise TutelageError(f"{spec}: no part {part!r}; it has {', '.join(parts)}")
    images = source.load(where, part if parts or named else None)
    if not isinstance(images, ImageSet):
        raise TutelageError(
            f"{spec}: the package of kind {kind!r} gave {type(images).__name__}, not an ImageSet"
        )
    return images


def open_for_evaluation(spec: str) -> ImageSet:
    """Open what a model is evaluated on: the part that the source names, else its test, else its val, else all.

    Notes on what is not used are logged.
    """
    for part in ("test", "val"):
        if part in parts_of(spec):
            images = open_source(spec, part)
            if images.labels is not None:
                break
    else:
        images = open_source(spec)
    for note in images.notes:
        log.warning("%s", note)
    return images


def parts_of(spec: str) -> tuple[str, ...]:
    """The parts of a source (``train``, ``val``, ``test``...); none where it is one set or already names a part."""
    kind, where, named = _parse(spec)
    return () if named else tuple(_source(kind).parts(where))


def canonical_part(name: str) -> str:
    """The common name of a part: ``validation`` becomes ``val``; a name that is not in `PART_NAMES` stays."""
    return next((part for part, names in PART_NAMES.items() if name.lower() in names), name)


def _parse(spec: str) -> tuple[str, str, str | None]:
    """(kind, where, part)."""
    kind, colon, where = spec.partition(":")
    if not colon and spec.startswith("digits#"):
        kind, where = "digits", spec.removeprefix("digits")
    needs_where = kind in KINDS and kind != "digits"
    if (needs_where and not colon) or not (kind in KINDS or kind in plugin_names(GROUP)):
        if (found := _kind_of_path(spec)) is None:
            raise TutelageError(_unknown(spec, kind, colon))
        kind, where = found, spec
    elif needs_where and not where:
        raise TutelageError(f"data source {spec!r}: say where after the colon; {WRITE}")
    head, hash_, part = where.rpartition("#")
    if not hash_ or Path(where).exists():
        return kind, where, None
    if not part:
        raise TutelageError(f"data source {spec!r}: name a part after '#', such as {spec}val")
    return kind, head, part


def _kind_of_path(spec: str) -> str | None:
    """The kind of what there is of this name, without its part and its options; None where there is nothing."""
    whole = spec.rpartition("#")[0]
    for name in (spec, whole, spec.partition("?")[0], whole.partition("?")[0]):
        if name and (path := Path(name).expanduser()).exists():
            return "folder" if path.is_dir() else OF_SUFFIX.get(path.suffix.lower(), "folder")
    return None


def _unknown(spec: str, kind: str, colon: str) -> str:
    if kind in KINDS:
        return (
            f"data source {spec!r}: say where after a colon, such as {kind}:PATH; there is no path {spec!r}"
        )
    packages = plugin_names(GROUP)
    close = nearest(kind, [*KINDS, *packages], cutoff=0.5)
    hint = f"; did you mean {close!r}?" if close else ""
    extra = "".join(f", or {name}:WHERE" for name in packages)
    return f"data source {spec!r}: unknown kind{'' if colon else ', and no such path'}{hint}; {WRITE}{extra}"


def _source(kind: str) -> Source:
    """The code of a kind; a built-in one wins over a package's."""
    if kind in KINDS:
        return cast(Source, importlib.import_module(KINDS[kind]))
    source = load_plugin(GROUP, kind, f"data source {kind!r}")
    if not all(callable(getattr(source, name, None)) for name in ("parts", "load")):
        raise TutelageError(
            f"data source {kind!r}: its package names no `parts(where)` and `load(where, part)`"
        )
    return cast(Source, source)
