"""WebDataset shards of a URL: ``wds:https://host/{000..099}.tar``, or of ``s3://bucket/folder``, opened by fsspec.

They are read once, see `streaming`. Behind the pattern may stand ``?side=320``: the short side in pixels of what is
kept.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.sources.names import image_id, label_indices
from tutelage.data.sources.streamed import Streamed
from tutelage.data.sources.streaming import SIDE, Keep, side_of, stream
from tutelage.data.sources.tarred import Found, Member, expanded, opened, scan

# The kinds of address that are opened, and the package that each needs besides fsspec.
SCHEMES = {
    "https": "aiohttp",
    "http": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "file": "fsspec",
    "memory": "fsspec",
}
OPTION = re.compile(r"^(.*)[?&]side=([^&/]*)$")
MAX_IMAGE_BYTES = 2**28  # of a member; a larger one is not read into memory
BLOCK = 2**18  # bytes that are asked for at a time
CONNECT, SILENT = 30, 60  # seconds without a connection, and without a byte, after which a server is given up


@dataclass(frozen=True)
class Tar:
    """One shard.

    Attributes:
        name: its URL.
    """

    name: str

    @property
    def folder(self) -> str:
        """The URL up to its last slash."""
        return self.name.partition("?")[0].rpartition("/")[0]

    def read(self, keep: Keep) -> dict[str, Any]:
        """Read the images in order, in one pass over the tar file."""
        found = Found()

        def take(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
            if member.size > MAX_IMAGE_BYTES:
                return keep(None, f"{member.size / 2**20:,.0f} MB are too much for an image")
            file = tar.extractfile(member)
            keep(file.read() if file else None, "no file")

        with _opened(self.name) as raw:
            try:
                with opened(fileobj=raw, mode="r|*", bufsize=BLOCK) as tar:
                    scan(tar, 0, found, keep=take)
            except (tarfile.TarError, EOFError, ValueError, zlib.error, LZMAError) as error:
                raise TutelageError(
                    f"shard {self.name} is broken or cut off ({one_line(error)}); replace it, or leave it out of the "
                    "pattern"
                ) from None
        return {
            "names": [member.name for member in found.images],
            "labels": [member.label for member in found.images],
            "plain": [member.plain for member in found.images],
            "unread": found.unread,
            "keys": found.keys,
        }


def open_remote(where: str) -> Streamed:
    """Open the shards of a URL; those of which there is no part on this disk are read.

    Raises:
        TutelageError: a kind of address that is not opened, or one whose package is not installed; a server that cannot
            be reached; a shard that does not exist or is broken; no images.
    """
    name = f"wds:{where}"
    option = OPTION.match(where)
    pattern, side = (option[1], side_of(name, option[2])) if option else (where, SIDE)
    urls = expanded(pattern)
    for url in urls:
        _check(name, url)
    shards = [Tar(url) for url in urls]
    found = stream(name, shards, side)
    told = _told(found.facts, found.entries)
    chosen = told.chosen()
    notes = told.notes(name, chosen)
    images = [told.images[number] for number in chosen]
    if not images and told.unread:
        raise TutelageError(f"{notes[0]}; there are no other images")
    classes, labels = label_indices([member.label for member in images])
    bases = [PurePosixPath(urlsplit(url).path).name for url in urls]
    ids = [image_id(f"{bases[member.shard]}/{member.name}") for member in images]
    streamed = Streamed(name, f"wds:{pattern}", found, shards, ids, chosen, classes, labels, side)
    streamed.notes = notes
    return streamed


def _told(facts: list[dict[str, Any]], entries: list[np.ndarray]) -> Found:
    """What all shards contain, from what is kept of each."""
    found = Found()
    for shard, (one, placed) in enumerate(zip(facts, entries, strict=True)):
        rows = zip(
            one["names"], placed["start"].tolist(), one["sizes"], one["plain"], one["labels"], strict=True
        )
        found.images += [Member(shard, *row) for row in rows]
        found.unread += Counter(one["unread"])
        found.keys += Counter(one["keys"])
    return found


def _check(name: str, url: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise TutelageError(f"{name}: {scheme}:// is not opened; there are {', '.join(SCHEMES)}, or a path")
    if "*" in rest.partition("?")[0]:
        raise TutelageError(f"{name}: name the shards of a URL by braces, such as {{000..099}}.tar, not by *")


def _opened(url: str) -> BinaryIO:
    """A file that is read forwards."""
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    how: dict[str, int] = {}
    try:
        import fsspec

        if scheme in {"http", "https"}:
            import aiohttp

            limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENT)
            options = {"client_kwargs": {"timeout": limit, "trust_env": True}}  # it knows of proxies
            # one request for the whole file, which every server answers; a size is not asked for then
            how = {"block_size": 0, "size": 1}
        filesystem, path = fsspec.core.url_to_fs(url, **options)
        return filesystem.open(path, "rb", **how)
    except ImportError:
        package = SCHEMES[scheme]
        raise TutelageError(f"{scheme}:// needs the package {package}: pip install {package}") from None
    except FileNotFoundError:
        raise TutelageError(f"shard {url} is not there") from None
    except PermissionError as error:
        raise TutelageError(f"shard {url} may not be read ({one_line(error)[:200]})") from None
