"""Equal images in training and in evaluation: found by the bytes of their files, without decoding them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
Key = tuple[int, int]  # size of a file, and a digest of its first bytes


class Copies:
    """Finds images whose files are equal, byte for byte, to that of a held-out image.

    Only files of equal size are read, and whole only where their first 4 KiB are equal too. Images that have no file of
    their own (`ImageSet.content`), and files of less than 128 bytes, are not compared. What was read of beginnings is
    kept, so that one object should serve all comparisons of a run.
    """

    def __init__(self) -> None:
        self._heads: dict[
            ImageSet, tuple[np.ndarray, np.ndarray]
        ] = {}  # digests, and which of them are there

    def positions(self, role: str, trained: Images, held: Sequence[Images], notes: list[str]) -> np.ndarray:
        """The positions of the training images that are copies, int64; a note on them is added to `notes`.

        Raises:
            TutelageError: all are copies.
        """
        copies = self.find(trained, held)
        images, indices = trained
        if not copies:
            return np.array([], np.int64)
        if len(copies) == len(indices):
            raise TutelageError(
                f"data.{role}={images.name}: each of its {len(copies):,} images is in data.val or data.test too; name "
                "other images, or keep the copies with data.drop_duplicates=false"
            )
        pairs = [f"{images.ids[int(indices[place])]} = {original}" for place, original in copies.items()]
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


def _sizes(images: Images) -> np.ndarray:
    """Size of each image's file in bytes; -1 where it is not known."""
    sizes = images[0].sizes()
    return np.full(len(images[1]), -1, np.int64) if sizes is None else sizes[images[1]]


def _digest(images: ImageSet, index: int, count: int = -1) -> bytes | None:
    """A digest of the first bytes of a file, all of them for -1; None where it cannot be read."""
    content = images.content(index, count)
    return None if content is None else hashlib.blake2b(content, digest_size=16).digest()
