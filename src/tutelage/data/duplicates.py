"""Equal images in training and in evaluation: found by the bytes of their files, without decoding them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.tree import counted, listed

HEAD = 4096  # bytes that are compared before whole files are
LEAST = 128  # bytes; smaller files hold next to nothing (one colour, 8x8 pixels) and may be equal by chance
READERS, CHUNK = (
    16,
    256,
)  # threads, which mostly wait for the disk or the network; and images that one takes at a time
Images = tuple[ImageSet, np.ndarray]  # a set, and int64 indices of some of its images
Known = Mapping[str, Mapping[str, str]]  # ids of copies and of their originals, by the step that found them
SOURCE = "source"  # the step that looks at all images of the training source, before it is split
Key = tuple[int, int]  # size of a file, and a digest of its first bytes


class Copies:
    """Finds images whose files are equal, byte for byte, to that of a held-out image.

    Only files of equal size are read, and whole only where their first 4 KiB are equal too. Images that have no file of
    their own (`ImageSet.content`), and files of less than 128 bytes, are not compared. What was read of beginnings is
    kept, so that one object should serve all comparisons of a run.

    Attributes:
        found: for each step, the ids of the copies among the images that it looked at, each with that of the held-out
            image that it equals. They can be recorded, so that they need not be found again.
    """

    def __init__(self, known: Known | None = None) -> None:
        """Begin.

        Args:
            known: what an earlier object found of the same images (`found`), which is then not looked for again.
        """
        self.found: dict[str, dict[str, str]] = {}
        self._known = known
        self._heads: dict[
            ImageSet, tuple[np.ndarray, np.ndarray]
        ] = {}  # digests, and which of them are there

    def positions(self, step: str, trained: Images, held: Sequence[Images], notes: list[str]) -> np.ndarray:
        """The positions of the training images that are copies, int64; a note on them is added to `notes`.

        Args:
            step: ``train``, ``unlabelled`` or ``teacher``, the role of the images; or `SOURCE`.
            trained: the images to look at.
            held: the held-out images.
            notes: sentences about what is not used.

        Raises:
            TutelageError: all are copies, or all labelled training images of a class.
        """
        role = "train" if step == SOURCE else step
        images, indices = trained
        copies = (
            self.find(trained, held) if self._known is None else _placed(trained, self._known.get(step, {}))
        )
        if not copies:
            return np.array([], np.int64)
        self.found[step] = {images.ids[int(indices[place])]: original for place, original in copies.items()}
        if len(copies) == len(indices):
            raise TutelageError(
                f"data.{role}={images.name}: each of its {len(copies):,} images is in data.val or data.test too; name "
                "other images, or keep the copies with data.drop_duplicates=false"
            )
        if role == "train":
            _check_classes(trained, list(copies))
        pairs = [f"{copy} = {original}" for copy, original in self.found[step].items()]
        notes.append(
            f"data.{role}={images.name}: {counted(len(copies), 'copy', 'copies')} of val or test images left out: "
            f"{listed(pairs)} (data.drop_duplicates=false keeps them)"
        )
        return np.array(list(copies), np.int64)

    def find(self, trained: Images, held: Sequence[Images]) -> dict[int, str]:
        """Find the copies among some images.

        Args:
            trained: the images to look at.
            held: the held-out images.

        Returns:
            For the position of each copy in `trained`, the id of the first held-out image that it equals.
        """
        sizes = _sizes(trained)
        originals: dict[Key, list[tuple[ImageSet, int]]] = {}
        for other in held:
            for position, key in self._keys(other, _sizes(other), sizes):
                originals.setdefault(key, []).append((other[0], int(other[1][position])))
        wanted = np.array(sorted({size for size, _ in originals}), np.int64)
        whole: dict[Key, dict[bytes, str]] = {}  # ids of the originals by a digest of the whole file
        copies = {}
        for position, key in self._keys(trained, sizes, wanted):
            if key not in originals:
                continue
            if key not in whole:  # read once, however many training images begin like them
                pairs = (
                    (_digest(images, index), images.ids[index]) for images, index in reversed(originals[key])
                )
                whole[key] = {digest: name for digest, name in pairs if digest is not None}
            digest = _digest(trained[0], int(trained[1][position]))
            if digest is not None and digest in whole[key]:
                copies[position] = whole[key][digest]
        return copies

    def _keys(self, images: Images, sizes: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, Key]]:
        """Position and key of the images whose files have one of these sizes, without unknown and very small ones."""
        positions = np.flatnonzero(np.isin(sizes, wanted) & (sizes >= LEAST))
        heads = self._read_heads(images[0], images[1][positions])
        for position, head in zip(positions.tolist(), heads.tolist(), strict=True):
            yield position, (int(sizes[position]), head)

    def _read_heads(self, images: ImageSet, indices: np.ndarray) -> np.ndarray:
        """A digest of the first bytes of each image's file, int64; files that cannot be read have the same one."""
        fresh = np.zeros(len(images), np.int64), np.zeros(len(images), bool)
        heads, known = self._heads.setdefault(images, fresh)
        missing = indices[~known[indices]]

        def read(chunk: np.ndarray) -> None:
            found = [_digest(images, index, HEAD) or bytes(16) for index in chunk.tolist()]
            heads[chunk] = [int.from_bytes(digest[:8], "little", signed=True) for digest in found]

        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(read, np.split(missing, range(CHUNK, len(missing), CHUNK))))
        known[missing] = True
        return heads[indices]


def _placed(images: Images, known: Mapping[str, str]) -> dict[int, str]:
    """Positions of known copies, each with the id of its original."""
    if not known:
        return {}
    ids = (images[0].ids[index] for index in images[1].tolist())
    return {place: known[name] for place, name in enumerate(ids) if name in known}


def _check_classes(trained: Images, copies: list[int]) -> None:
    """Refuse copies that are all training images of a class.

    Raises:
        TutelageError: names the class.
    """
    images, indices = trained
    if images.labels is None or images.classes is None:
        return
    labels = images.labels[indices]
    lost = np.setdiff1d(labels[copies], np.delete(labels, copies))
    lost = lost[lost >= 0]
    if len(lost):
        names = [repr(images.classes[label]) for label in lost.tolist()]
        raise TutelageError(
            f"data.train={images.name}: each training image of {counted(len(names), 'class', 'classes')} "
            f"({listed(names)}) is in data.val or data.test too; add other images, or keep the copies with "
            "data.drop_duplicates=false"
        )


def _sizes(images: Images) -> np.ndarray:
    """Size of each image's file in bytes; -1 where it is not known."""
    sizes = images[0].sizes()
    return np.full(len(images[1]), -1, np.int64) if sizes is None else sizes[images[1]]


def _digest(images: ImageSet, index: int, count: int = -1) -> bytes | None:
    """A digest of the first bytes of a file, all of them for -1; None where it cannot be read."""
    content = images.content(index, count)
    return None if content is None else hashlib.blake2b(content, digest_size=16).digest()
