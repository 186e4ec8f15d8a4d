"""What was found below a folder of very many images, kept for the next start, which then lists no folder and no file.

Folders are looked at again: their time changes where a file is added, removed or renamed. Files that are changed in
place are noticed by a sample of them only.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_bytes
from tutelage.data.decode import SUFFIXES
from tutelage.data.sources.names import Names, Paths

log = logging.getLogger(__name__)
FORMAT = 1  # of the files; those of another format are not read
LEAST = 100_000  # images; fewer are listed at each start, which takes less than a second
SAMPLE = 1_000  # files that are looked at again
SETTLED = 2.0  # seconds since the last change of a folder; before, another one might get the same time
STATS = ("st_size", "st_mtime_ns", "st_dev", "st_ino")


@dataclass(frozen=True)
class Scan:
    """The images below a folder.

    Attributes:
        paths: of the files.
        classes: names in label order.
        labels: int64, index into `classes`, -1 where an image has none.
        notes: sentences about what is not used.
        stats: int64 (files, 4), `STATS` of each file; -1 where it did not exist any more.
    """

    paths: Paths
    classes: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...]
    stats: np.ndarray


def stats_of(root: Path, paths: Sequence[str]) -> np.ndarray:
    """Size, time, device and inode of each of some files below a folder: int64 (files, 4)."""
    found = np.full((len(paths), len(STATS)), -1, np.int64)
    base = f"{root}/"
    for row, path in zip(found, paths, strict=True):
        try:
            stat = os.stat(base + path)
        except OSError:
            continue
        row[:] = [
            value - 2**64 if value >= 2**63 else value for value in (getattr(stat, name) for name in STATS)
        ]
    return found


def keep(name: str, where: Sequence[Path], scan: Scan, folders: Mapping[str, int], began: float) -> None:
    """Keep a scan for the next start, unless a folder has just been changed. A disk that is full costs only that.

    Args:
        name: of the source, as written.
        where: the folder that the paths are below, and those in it in which images were looked for.
        scan: what was found.
        folders: all folders that were listed, with their times in ns before that.
        began: when the scan began, in seconds.
    """
    if max(folders.values(), default=0) > (began - SETTLED) * 1e9:
        return
    meta = {
        "format": FORMAT,
        "folders": list(folders),
        "classes": scan.classes,
        "notes": scan.notes,
        "odd": scan.paths.odd,
    }
    text, ends = scan.paths.ids.block()
    stream = io.BytesIO()
    np.savez(
        stream,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        text=np.frombuffer(text, np.uint8),
        ends=ends,
        labels=scan.labels,
        stats=scan.stats,
        times=np.array([*folders.values()], np.int64),
    )
    try:
        write_bytes(_place(name, where), stream.getvalue())
    except TutelageError as error:
        log.debug("%s", error)


def kept(name: str, where: Sequence[Path]) -> Scan | None:
    """The scan of an earlier start; None where there is none, or a folder or a file of a sample has changed."""
    try:
        with np.load(_place(name, where)) as found:
            meta: dict[str, Any] = json.loads(found["meta"].tobytes())
            if meta["format"] != FORMAT:
                return None
            for folder, when in zip(meta["folders"], found["times"].tolist(), strict=True):
                if os.stat(folder).st_mtime_ns != when:
                    return None
            odd = {int(index): path for index, path in meta["odd"].items()}
            paths = Paths(Names.of_block(found["text"].tobytes(), found["ends"]), odd)
            scan = Scan(paths, tuple(meta["classes"]), found["labels"], tuple(meta["notes"]), found["stats"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        log.debug("%s: no scan is kept (%s)", where[0], error)
        return None
    chosen = np.random.default_rng(time.time_ns()).integers(0, len(scan.labels), SAMPLE)
    now = stats_of(where[0], [scan.paths[int(index)] for index in chosen])
    return scan if np.array_equal(now, scan.stats[chosen]) else None


def _place(name: str, where: Sequence[Path]) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    text = "|".join([name, *(str(folder.resolve()) for folder in where), *sorted(SUFFIXES)])
    return (
        base
        / "tutelage"
        / "folders"
        / f"{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:32]}.npz"
    )
