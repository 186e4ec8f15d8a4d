"""Sources that lie elsewhere: read once, a shard at a time, into parts on this disk, which all later starts read.

A part is a file as in a packed store (`tutelage.data.parts`), with the images of one shard, their names and labels. It
is written under another name and renamed when it is complete. So a pass that is stopped goes on with the shards of
which there is no part yet, and what is complete needs no network.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, BinaryIO, Protocol

import numpy as np

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import unwritable
from tutelage.data.claims import aside_of, claimed, clear_abandoned
from tutelage.data.decode import UnreadableImage
from tutelage.data.parts import ENTRY, FORMAT, QUALITY, SUFFIX, footer, read_list, small_jpeg
from tutelage.data.workers import deaf_to_interrupts

log = logging.getLogger(__name__)
SIDE = 512  # pixels: enough for a network at 376 pixels with the default crops
SIDES = range(16, 8193)  # that may be asked for
TRIES = 3  # of a shard that the network does not give
PAUSE = 1.0  # seconds before the second of them, and between two looks at what other processes write
EVERY = 30.0  # seconds between two reports
LOOK = 2.0  # seconds between two looks at whether the processes live
Result = tuple[str | None, bool]
Keep = Callable[[bytes | None, str], None]


class Shard(Protocol):
    """A part of a source that is read in one go."""

    @property
    def name(self) -> str:
        """What is named in errors; no other shard of the folder has it."""

    @property
    def folder(self) -> str:
        """What the shards that are kept in one folder have in common, such as the address before the last slash."""

    def read(self, keep: Keep) -> dict[str, Any]:
        """Read the images in order.

        Args:
            keep: takes each encoded image; None and the reason where there is none.

        Returns:
            JSON values about the images.

        Raises:
            TutelageError: another try would not help.
            Exception: any other error means that another try may help.
        """


@dataclass(frozen=True)
class Pass:
    """All shards of a source, once each is on this disk.

    Attributes:
        parts: the file of each shard.
        entries: of each part, `ENTRY`; `image` counts from 0 in each.
        facts: of each part: what `Shard.read` has returned, ``bad``, reasons by number, and ``sizes``, bytes.
    """

    parts: tuple[Path, ...]
    entries: list[np.ndarray]
    facts: list[dict[str, Any]]


def stream(name: str, shards: Sequence[Shard], side: int, workers: int | None = None) -> Pass:
    """Read the shards of which there is no part yet, together with all other processes that call this.

    Args:
        name: of the source, as written.
        shards: in order.
        side: short side in pixels to which larger images are shrunk.
        workers: processes that read shards; None: one per core, shared with the machine's other processes.

    Raises:
        TutelageError: a shard cannot be read, or the disk has no room.
    """
    parts = [part_of(shard, side) for shard in shards]
    for folder in {part.parent for part in parts}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        clear_abandoned(folder)
    lists = [_read(part) for part in parts]
    while wanted := [number for number, found in enumerate(lists) if found is None]:
        _write_all(name, [shards[number] for number in wanted], parts, side, workers)
        for number in wanted:
            lists[number] = _read(parts[number])
    found = [one for one in lists if one is not None]
    return Pass(tuple(parts), [one[0] for one in found], [one[1] for one in found])


def folder_of(what: str, side: int) -> Path:
    """The folder for the parts of a source, named so that a reader knows which one it is."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    text = f"{FORMAT}|{QUALITY}|{side}|{what}"
    return base / "tutelage" / "streamed" / f"{_plain(what)}-{side}px-{_short(text)}"


def part_of(shard: Shard, side: int) -> Path:
    """The file that a shard is kept in."""
    last = shard.name.rpartition("/")[2].partition("?")[0]
    return folder_of(shard.folder, side) / f"{_plain(last)}-{_short(shard.name)}{SUFFIX}"


def side_of(name: str, text: str) -> int:
    """The value of the option ``side``.

    Raises:
        TutelageError: it is no number of pixels.
    """
    if not text.isdecimal() or len(text) > 5 or int(text) not in SIDES:
        raise TutelageError(
            f"{name}: side={text}: write the short side of the kept images in pixels, {SIDES[0]} to {SIDES[-1]}, such "
            f"as side={SIDE}"
        )
    return int(text)


def _write_all(
    name: str, shards: Sequence[Shard], parts: Sequence[Path], side: int, workers: int | None
) -> None:
    """Write the parts of some shards; it returns when each of them was there for a moment."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first = rank * len(shards) // world_size  # processes begin at different shards
    left = [*shards[first:], *shards[:first]]
    if workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = min(len(left), max(1, cores))
    told = time.monotonic()
    if rank == 0:
        log.warning(
            "%s: %d of %d shards are read into %s, once", name, len(left), len(parts), parts[0].parent
        )
    while left:
        wrote = False
        for error, written in _results(left, side, workers if len(left) > 1 else 0):
            if error is not None:
                raise TutelageError(f"{name}: {error}")
            if not written:
                continue
            wrote = True
            _check_room(name, parts)
            if rank == 0 and time.monotonic() - told > EVERY:
                told = time.monotonic()
                log.warning("%s: %d of %d shards read", name, sum(map(Path.exists, parts)), len(parts))
        left = [shard for shard in left if not part_of(shard, side).exists()]
        if left and not wrote:
            time.sleep(PAUSE)


def _results(shards: Sequence[Shard], side: int, workers: int) -> Iterator[Result]:
    """Write what no other process writes, in some processes or, with 0 of them, in this one.

    They are no workers of a torch DataLoader: in one of these, `datasets` gives only a share of the rows.

    Raises:
        TutelageError: a process died.
    """
    if not workers:
        yield from map(functools.partial(_write_part, side=side), shards)
        return
    queue: multiprocessing.Queue[Result] = multiprocessing.Queue()
    starts = [number * len(shards) // workers for number in range(workers)]
    processes = [
        multiprocessing.Process(
            target=_write_in_turn, args=([*shards[at:], *shards[:at]], side, queue), daemon=True
        )
        for at in starts
    ]
    try:
        for process in processes:
            process.start()
        awaited = len(shards) * workers
        while awaited:
            dead = next((p for p in processes if p.exitcode), None)
            try:
                yield queue.get(timeout=LOOK)
                awaited -= 1
            except Empty:
                if dead:
                    reason = f"exit code {dead.exitcode}"
                    raise TutelageError(f"a process that read shards died ({reason})") from None
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join(LOOK)
                process.kill()


def _write_in_turn(shards: Sequence[Shard], side: int, queue: multiprocessing.Queue[Result]) -> None:
    """What one process does. It ends with the process that started it, also where that one is killed."""
    deaf_to_interrupts(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it removes what it has half written
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for shard in shards:
        queue.put(_write_part(shard, side))


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _write_part(shard: Shard, side: int) -> Result:
    """Write the part of a shard, unless it is there or another process writes it: (error, whether it was written)."""
    part = part_of(shard, side)
    try:
        if part.exists():
            return None, False
        with claimed(part.parent / f".{part.name}.claim") as claim:
            if claim is None or part.exists():
                return None, False
            _write(shard, part, claim, side)
    except TutelageError as error:  # handed on as text, since another process shows it
        return str(error), False
    except OSError as error:
        return str(unwritable(part, error)), False
    return None, True


def _write(shard: Shard, part: Path, claim: Path, side: int) -> None:
    """Write a part under another name and rename it; what the network does not give is asked for again."""
    aside = aside_of(part)
    try:
        for again in range(TRIES):
            try:
                with open(aside, "wb") as stream:
                    images = _Images(stream, part, claim, side)
                    images.end(shard.read(images.keep))
                break
            except TutelageError:
                raise
            except Exception as error:  # of a network: each library raises its own
                if again == TRIES - 1:
                    raise TutelageError(
                        f"shard {shard.name} cannot be read ({one_line(error)[:200]}); go online, or name shards "
                        "on this disk"
                    ) from None
                time.sleep(PAUSE * 2**again)
        os.replace(aside, part)
    finally:
        aside.unlink(missing_ok=True)


class _Images:
    """The images of a part that is written."""

    def __init__(self, stream: BinaryIO, part: Path, claim: Path, side: int) -> None:
        self._stream, self._part, self._claim, self._side = stream, part, claim, side
        self._entries: list[tuple[int, int, int, int]] = []
        self._sizes: list[int] = []
        self._bad: dict[int, str] = {}
        self._end = 0

    def keep(self, content: bytes | None, reason: str) -> None:
        """Add the next image."""
        number, jpeg = len(self._entries), b""
        if content is None:
            self._bad[number] = reason
        else:
            try:
                jpeg = small_jpeg(content, str(number), self._side)
            except UnreadableImage as error:
                self._bad[number] = error.reason
        self._entries.append((number, self._end, len(jpeg), zlib.crc32(jpeg)))
        self._sizes.append(len(content or b""))
        self._end += len(jpeg)
        self._put(jpeg)
        with suppress(FileNotFoundError):  # taken from this process, which was asleep
            os.utime(self._claim)

    def end(self, facts: dict[str, Any]) -> None:
        """Add the list, and flush all to the disk."""
        facts = {**facts, "bad": self._bad, "sizes": self._sizes}
        self._put(footer(np.array(self._entries, ENTRY), facts), flush=True)

    def _put(self, content: bytes, flush: bool = False) -> None:
        try:
            self._stream.write(content)
            if flush:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        except OSError as error:  # of the disk, not of the network
            raise unwritable(self._part, error) from None


def _read(part: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The list of a part; None where there is no part, or it is damaged and removed."""
    try:
        return read_list(part)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: damaged (%s); its shard is read again", part, error)
        part.unlink(missing_ok=True)
        return None


def _check_room(name: str, parts: Sequence[Path]) -> None:
    """Stop where the parts that are missing will not fit on the disk, if they are as large as the others."""
    sizes = [part.stat().st_size for part in parts if part.exists()]
    more = sum(sizes) / max(1, len(sizes)) * (len(parts) - len(sizes))
    free = shutil.disk_usage(parts[0].parent).free
    if more > free:
        raise TutelageError(
            f"{name}: about {more / 1e9:.0f} GB more would be written to {parts[0].parent}, and "
            f"{free / 1e9:.0f} GB are free; name a smaller side, or another place by XDG_CACHE_HOME"
        )


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", text)[-80:].strip("-.") or "shard"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
