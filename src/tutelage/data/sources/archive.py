"""Images in a zip file, read without unpacking it: ``zip:photos.zip``. A path of such a file needs no kind.

The folders in it mean what they mean on disk: one for each class, train/, val/ and test/ of such, ``_unlabelled``, and
a folder around all of these. Lists of labels in it are not read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, UNREAD, UnreadableImage, decode
from tutelage.data.sources.base import PART_NAMES, ImageSet, canonical_part
from tutelage.data.sources.folder import GENERIC, UNLABELLED
from tutelage.data.sources.names import class_name, image_id
from tutelage.data.sources.tree import SYSTEM_FOLDERS, counted, listed, unread_note

LISTS = frozenset({".csv", ".tsv", ".txt", ".json", ".mat", ".xml"})  # files that may name the classes
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
UTF8 = 0x800  # flag of a name


@dataclass(frozen=True)
class _Member:
    """An image in a zip: the folders and the name of its file, and where its bytes are."""

    path: tuple[str, ...]
    info: zipfile.ZipInfo


class Archive(ImageSet):
    """Images in a zip file. The id of each is its path in the file.

    Each read opens the file, so that processes that are forked and threads share no position in it.
    """

    def __init__(
        self, name: str, file: Path, origin: str, members: list[_Member], classes: list[str | None]
    ) -> None:
        self._file = file
        infos = [member.info for member in members]
        self._starts = np.array([info.header_offset for info in infos], np.int64)
        self._packed = np.array([info.compress_size for info in infos], np.int64)
        self._sizes = np.array([info.file_size for info in infos], np.int64)
        self._crcs = np.array([info.CRC for info in infos], np.int64)
        self._deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in infos], bool)
        names = sorted({cls for cls in classes if cls is not None})  # as in a folder
        rank = {cls: label for label, cls in enumerate(names)}
        labels = np.array([-1 if cls is None else rank[cls] for cls in classes], np.int64)
        super().__init__(name, origin, [image_id("/".join(m.path)) for m in members], names or None, labels)

    def image(self, index: int) -> Image.Image:
        """Read one member and decode it."""
        content = self.content(index)
        if content is None:
            raise UnreadableImage(self.ids[index], f"it cannot be read from {self._file.name}")
        if zlib.crc32(content) != self._crcs[index]:
            raise UnreadableImage(self.ids[index], f"it is damaged in {self._file.name}")
        return decode(content, self.ids[index], self.max_pixels)

    def content(self, index: int, count: int = -1) -> bytes | None:
        """The first bytes of one member; None where it cannot be read."""
        size = int(self._sizes[index])
        wanted = size if count < 0 else min(count, size)
        try:
            with open(self._file, "rb") as file:
                file.seek(int(self._starts[index]))
                signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                if signature != b"PK\x03\x04":
                    return None
                file.seek(name + extra, os.SEEK_CUR)
                if not self._deflated[index]:
                    return file.read(wanted)
                # no more than the size in the index is unpacked, whatever the member says
                return zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                    file.read(int(self._packed[index])), max(1, wanted)
                )[:wanted]
        except (OSError, struct.error, zlib.error):
            return None

    def place(self, index: int) -> str:
        """The zip file and where the member begins in it."""
        return f"{self._file.resolve()}@{self._starts[index]}"

    def sizes(self) -> np.ndarray:
        """Size of each image in bytes, unpacked."""
        return self._sizes

    def stamp(self) -> str:
        """The time when the zip file was last changed, and a hash of its members' checksums."""
        try:
            changed = self._file.stat().st_mtime_ns
        except OSError as error:
            raise TutelageError(
                f"{self.name}: cannot be read any more ({error.strerror}); restore it"
            ) from None
        return f"{changed} {zlib.crc32(self._crcs.tobytes())}"


@dataclass
class _Index:
    """The images in a zip below its outer folders, and what else is there."""

    members: list[_Member]
    unread: Counter[str]
    lists: list[str]


def parts(where: str) -> tuple[str, ...]:
    """The names of the train, val and test folders, where the zip consists of these."""
    found = _folders(_index(where).members)
    return tuple(sorted({canonical_part(name) for name in found - UNLABELLED})) if _are_parts(found) else ()


def load(where: str, part: str | None) -> Archive:
    """Index a zip file, or one part of it."""
    file, index = _existing(where), _index(where)
    name, origin = f"zip:{where}", f"zip:{file.resolve()}"
    depth, members = _depth(index.members), index.members
    beside: list[_Member] = []
    if part is not None:
        name, origin, part = f"{name}#{part}", f"{origin}#{canonical_part(part)}", canonical_part(part)
        found = sorted(f for f in _folders(members) if canonical_part(f) == part)
        if len(found) != 1:
            raise TutelageError(
                f"{name}: the folders {' and '.join(found)} are both this part; remove or rename one of them"
                if found
                else f"{name}: no such folder in the zip"
            )
        if part == "train":
            beside = [m for m in members if len(m.path) > depth + 1 and m.path[depth] in UNLABELLED]
        members = [m for m in members if len(m.path) > depth + 1 and m.path[depth] == found[0]]
        depth += 1
    images, classes, notes = _classes(name, members, depth)
    images += beside
    classes += [None] * len(beside)
    if not images and index.unread:
        raise TutelageError(unread_note(name, index.unread)[0] + "; there are no other images")
    archive = Archive(name, file, origin, images, classes)
    archive.notes = (*unread_note(name, index.unread), *notes)
    if archive.labels is None and index.lists:
        archive.notes += (
            f"{name}: no folder for each class, and lists in a zip ({listed(index.lists)}) are not read; unpack it to "
            "use them",
        )
    return archive


def _classes(
    name: str, members: list[_Member], depth: int
) -> tuple[list[_Member], list[str | None], list[str]]:
    """The images of a folder of classes, the class of each, and notes on what is passed over."""
    loose = [m for m in members if len(m.path) == depth + 1]
    rest = [m for m in members if len(m.path) > depth + 1]
    folders = {m.path[depth] for m in rest}
    apart = [m for m in rest if m.path[depth] in UNLABELLED]
    named = [m for m in rest if m.path[depth] not in UNLABELLED]
    if not loose and len(folders - UNLABELLED) == 1 and next(iter(folders - UNLABELLED)).lower() in GENERIC:
        loose, named = named, []
    if not named:
        return loose + apart, [None] * len(loose + apart), []
    notes = []
    if loose:
        beside = sorted(m.path[-1] for m in loose)
        if len(folders - UNLABELLED) < 2 or len(loose) >= len(named):
            raise TutelageError(
                f"{name}: {beside[0]} lies beside the class folders; move it into one of them or, if its class is not "
                "known, into a folder _unlabelled beside them, or remove it"
            )
        notes = [
            f"{name}: {counted(len(beside), 'image')} beside the class folders passed over: {listed(beside)}"
        ]
    named.sort(key=lambda m: (class_name(m.path[depth]), m.path))
    classes: list[str | None] = [class_name(m.path[depth]) for m in named]
    return named + apart, classes + [None] * len(apart), notes


def _folders(members: list[_Member]) -> set[str]:
    """The names of the folders below the outer ones."""
    depth = _depth(members)
    return {m.path[depth] for m in members if len(m.path) > depth + 1}


def _depth(members: list[_Member]) -> int:
    """The number of folders around the classes or parts, as a zip of a folder has one."""
    folders, depth = {m.path[:-1] for m in members}, 0
    while True:
        below = {folder[depth:] for folder in folders}
        names = {folder[0] for folder in below if folder}
        if _are_parts(names) or (len(names) > 1 and () not in below):
            return depth
        if () in below or not names:
            return 0
        depth += 1


def _are_parts(names: set[str]) -> bool:
    """Whether folders are train, val and test. A class that happens to be called 'train' is not a part."""
    own = names - UNLABELLED
    known = {name for name in own if canonical_part(name) in PART_NAMES}
    common = {canonical_part(name) for name in known}
    return bool(known) and (known == own or ("train" in common and len(common) > 1))


def _existing(where: str) -> Path:
    file = Path(where).expanduser()
    if not file.is_file():
        reason = "a folder, not a file" if file.is_dir() else "no such file"
        raise TutelageError(f"zip:{where}: {reason}; name a zip file, such as zip:photos.zip")
    return file


def _index(where: str) -> _Index:
    found = _existing(where).stat()
    return _index_once(where, (found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=4)  # train, val and test may be parts of one file
def _index_once(where: str, changed: tuple[int, int]) -> _Index:
    """The images in a zip.

    Raises:
        TutelageError: it is no zip, is encrypted, or packed in a way that cannot be read.
    """
    try:
        with zipfile.ZipFile(_existing(where)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise TutelageError(f"zip:{where}: no zip file that can be read ({one_line(error)})") from None
    found: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    unread: Counter[str] = Counter()
    lists = []
    for info in infos:
        path = _path(info)
        suffix = os.path.splitext(path[-1])[1].lower() if path else ""
        if not path or info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
            continue
        if any(step.startswith(".") or step in SYSTEM_FOLDERS for step in path):
            continue
        if suffix in SUFFIXES:
            if info.flag_bits & 1 or info.compress_type not in READABLE:
                how = "encrypted" if info.flag_bits & 1 else "packed by a method other than deflate"
                raise TutelageError(f"zip:{where}: {'/'.join(path)} is {how}; unpack it, and name the folder")
            found[path] = info
        elif suffix in UNREAD:
            unread[suffix] += 1
        elif suffix in LISTS:
            lists.append("/".join(path))
    members = [_Member(path, info) for path, info in sorted(found.items())]
    return _Index(members, unread, lists)


def _path(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The steps of a member's path; Windows' backslashes, and UTF-8 that is not declared as such, are understood."""
    name = info.filename
    if not info.flag_bits & UTF8:
        with contextlib.suppress(UnicodeError):  # else the name is in the code page of zip files
            name = name.encode("cp437").decode("utf-8")
    return tuple(step for step in name.replace("\\", "/").split("/") if step not in ("", "."))
