"""The teacher's outputs for the views of a run, on disk: computed once, read by every epoch, trial and student.

A cache is a folder named by a digest of all that its content depends on. Each view of all images is one file of
rows in the order of the subset, divided into blocks; a second file has the checksum of each block, written after
the block. So a fill can be killed at any moment and continued, any number of processes can fill at the same time
(a block is claimed by a lock that is released when its process dies), and a changed byte is found.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json
from tutelage.distillation.outputs import Outputs, Targets
from tutelage.distillation.targets.layout import BATCH, Layout

FORMAT = 2  # of the files and of how views are drawn; another number is another cache
WAIT = 0.5  # seconds between two looks at what other processes are filling
MAKING = 2**62  # the byte of the lock file that is locked to create files; those of claims are below it
SUM = np.dtype([("crc", "<u4"), ("written", "<u4")])
Make = Callable[[int, Iterator[np.ndarray]], Iterator[tuple[np.ndarray, np.ndarray]]]


class Cache:
    """The targets of one subset, by view.

    Args:
        directory: holds any number of caches, shared by runs.
        identity: all that the content depends on, as plain JSON values.
        layout: of a row.

    Raises:
        ValueError: a key of the identity is one of the layout's.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], layout: Layout) -> None:
        self.layout = layout
        own = {
            "format": FORMAT,
            "images": layout.rows,
            "classes": layout.classes,
            "top_k": layout.top_k,
            "temperature": layout.temperature if layout.top_k else None,
            **({"pooled": layout.pooled} if layout.pooled else {}),
        }
        if (
            hidden := own.keys() & identity.keys()
        ):  # caches that differ in it alone would be taken for one another
            raise ValueError(f"the identity of a cache has keys of the layout: {', '.join(sorted(hidden))}")
        self.identity = identity | own
        text = json.dumps(self.identity, sort_keys=True)
        self.place = directory / f"targets-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        # of each view that was read: its rows, and which blocks' checksums were verified
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    # --- reading

    def read(self, views: int | np.ndarray, positions: np.ndarray) -> Targets:
        """Read the targets of some images, as `outputs` without features."""
        logits = self.outputs(views, positions).logits
        assert logits is not None
        return logits

    def outputs(self, views: int | np.ndarray, positions: np.ndarray) -> Outputs:
        """Read the targets of some images, and their pooled features where the layout has them.

        Args:
            views: number of the view, of all images or (B,) of each.
            positions: (B,) positions in the subset.

        Raises:
            TutelageError: a block was changed since it was written, or an image had no target.
        """
        each = np.broadcast_to(views, positions.shape)
        found = np.empty(len(positions), self.layout.dtype)
        for view in np.unique(each).tolist():
            found[each == view] = self._read(view, positions[each == view])
        return self.layout.decode(found)

    def _read(self, view: int, positions: np.ndarray) -> np.ndarray:
        rows, whole = self._mapped(view)
        for block in np.unique(positions // self.layout.block).tolist():
            if not whole[block]:
                self._check(view, block, rows)
                whole[block] = True
        found: np.ndarray = rows[positions]
        if np.isnan(found["values"][:, 0]).any():
            raise TutelageError(
                f"{self._rows(view)}: an image could not be decoded when the targets were made, and now can; "
                "delete this file and resume"
            )
        return found

    def _mapped(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Map the rows of a view into memory."""
        if view not in self._open:
            try:
                rows = np.memmap(self._rows(view), self.layout.dtype, "r", shape=(self.layout.rows,))
            except (OSError, ValueError) as error:
                raise TutelageError(
                    f"{self._rows(view)}: cannot be read ({error}); resume the run to compute it again"
                ) from None
            self._open[view] = rows, np.zeros(self.layout.blocks, bool)
        return self._open[view]

    def _check(self, view: int, block: int, rows: np.ndarray) -> None:
        span, entry = self.layout.span(block), self._sums(view)[block]
        if not entry["written"] or zlib.crc32(rows[span.start : span.stop].tobytes()) != entry["crc"]:
            raise TutelageError(
                f"{self._rows(view)}: damaged, images {span.start} to {span.stop - 1} do not match their "
                "checksum; delete this file and resume, which computes it again"
            )

    # --- filling

    def missing(self, views: int) -> int:
        """Return the number of targets to compute, over all views."""
        return sum(len(self.layout.span(block)) for view in range(views) for block in self._unwritten(view))

    def prepare(self, views: int) -> None:
        """Create the folder, and check that the disk has space for the missing targets.

        Raises:
            TutelageError: the folder cannot be created, or the disk is too small.
        """
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.place).free
        except OSError as error:
            raise TutelageError(f"{self.place}: cannot be created ({error.strerror})") from None
        wanted = self.missing(views) * self.layout.dtype.itemsize
        if wanted > free:
            raise TutelageError(
                f"{self.place}: the targets need {wanted / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left; free "
                "some, lower targets.views or set targets.top_k"
            )
        if not (self.place / "about.json").exists():
            write_json(self.place / "about.json", self.identity)

    def fill(self, views: int, make: Make) -> None:
        """Write all missing targets, together with any other processes, and return when none is missing.

        Args:
            views: number of views.
            make: computes (positions, rows) from (view, batches of positions), in the same order; positions whose
                image cannot be decoded may be missing.
        """
        lock = os.open(self.place / "fill.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            for view in range(views):
                while self._unwritten(view):
                    if not self._fill_view(view, lock, make):
                        time.sleep(WAIT)  # others compute the rest; if one dies, its claims are released
        except OSError as error:
            raise TutelageError(
                f"{self.place}: cannot be written ({error.strerror}); free some space"
            ) from None
        finally:
            os.close(lock)

    def _fill_view(self, view: int, lock: int, make: Make) -> int:
        """Write the blocks that no other process has claimed; return their number."""
        claimed: deque[int] = deque()
        batches = self._claimed_batches(view, lock, claimed)
        first = next(batches, None)
        if first is None:
            return 0
        made, rows = 0, self.layout.empty(self.layout.block)
        with self._files(view, lock) as files:
            for positions, found in make(view, chain([first], batches)):
                block = int(positions[0]) // self.layout.block
                made += self._finish(view, lock, files, claimed, block, rows)
                rows[positions - block * self.layout.block] = found
            made += self._finish(view, lock, files, claimed, self.layout.blocks, rows)
        return made

    def _finish(
        self, view: int, lock: int, files: _Files, claimed: deque[int], end: int, rows: np.ndarray
    ) -> int:
        """Write the claimed blocks below `end`: `rows` are of the first one, and others have no readable image."""
        done = 0
        while claimed and claimed[0] < end:
            block = claimed.popleft()
            files.write(block, rows[: len(self.layout.span(block))])
            fcntl.lockf(lock, fcntl.LOCK_UN, 1, self._claim(view, block))
            rows[:] = self.layout.empty(len(rows))
            done += 1
        return done

    def _claimed_batches(self, view: int, lock: int, claimed: deque[int]) -> Iterator[np.ndarray]:
        """Claim one block after the other, and yield its positions in batches."""
        for block in self._unwritten(view):
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._claim(view, block))
            except (BlockingIOError, PermissionError):
                continue
            if self._sums(view)[block]["written"]:  # by another process since `_unwritten`
                fcntl.lockf(lock, fcntl.LOCK_UN, 1, self._claim(view, block))
                continue
            claimed.append(block)
            span = self.layout.span(block)
            for start in range(span.start, span.stop, BATCH):
                yield np.arange(start, min(start + BATCH, span.stop))

    # --- files

    @contextmanager
    def _files(self, view: int, lock: int) -> Iterator[_Files]:
        """Open the files of a view for writing; one process at a time creates them."""
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, MAKING)
        try:
            files = _Files(self._rows(view), self._sums_path(view), self.layout)
        finally:
            fcntl.lockf(lock, fcntl.LOCK_UN, 1, MAKING)
        try:
            yield files
        finally:
            files.close()

    def _claim(self, view: int, block: int) -> int:
        """Return the byte of the lock file that is locked to claim a block."""
        return view * self.layout.blocks + block

    def _unwritten(self, view: int) -> list[int]:
        return np.flatnonzero(self._sums(view)["written"] == 0).tolist()

    def _sums(self, view: int) -> np.ndarray:
        sums = np.zeros(self.layout.blocks, SUM)
        path = self._sums_path(view)
        if path.exists() and self._rows(view).exists():
            found = np.fromfile(path, SUM, self.layout.blocks)
            sums[: len(found)] = found
        return sums

    def _rows(self, view: int) -> Path:
        return self.place / f"view-{view:04d}.rows"

    def _sums_path(self, view: int) -> Path:
        return self.place / f"view-{view:04d}.sums"


class _Files:
    """The two files of a view, open for writing."""

    def __init__(self, rows: Path, sums: Path, layout: Layout) -> None:
        self._layout = layout
        if not rows.exists():
            sums.unlink(missing_ok=True)  # of rows that were deleted
        flags = os.O_RDWR | os.O_CREAT
        self._rows, self._sums = os.open(rows, flags, 0o666), os.open(sums, flags, 0o666)
        for file, size in ((self._rows, layout.view_bytes), (self._sums, layout.blocks * SUM.itemsize)):
            if os.fstat(file).st_size < size:
                os.ftruncate(file, size)

    def close(self) -> None:
        """Close both files."""
        os.close(self._rows)
        os.close(self._sums)

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write a block, and its checksum once the block is on the disk."""
        content = rows.tobytes()
        _write_at(self._rows, content, self._layout.span(block).start * self._layout.dtype.itemsize)
        entry = np.array([(zlib.crc32(content), 1)], SUM).tobytes()
        _write_at(self._sums, entry, block * SUM.itemsize)


def _write_at(file: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written
    os.fsync(file)
