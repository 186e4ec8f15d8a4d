"""Shards of real pictures, and a web server on this machine that gives them, or fails in the ways that servers do."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_digits


def digit(number: int, side: int = 24) -> bytes:
    """A handwritten digit as a grey JPEG."""
    pixels = (load_digits().images[number] * 15.9).astype("uint8")
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_shards(folder: Path, shards: int, images: int, kind: str = "w", suffix: str = "tar") -> None:
    """Write shards of digits, each with its class."""
    target = load_digits().target
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.{suffix}", kind) as tar:
            for number in range(shard * images, (shard + 1) * images):
                for name, content in (
                    (f"{number:03}.jpg", digit(number)),
                    (f"{number:03}.cls", str(target[number]).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class Server(http.server.ThreadingHTTPServer):
    """Gives the files of a folder.

    Attributes:
        asked: how often each path was asked for.
        failing: by path, what is done instead, once for each entry: an HTTP status; 0: end the connection half-way.
        held: paths that are not answered until `go`.
        go: lets them be answered.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.asked: Counter[str] = Counter()
        self.failing: dict[str, list[int]] = {}
        self.held: set[str] = set()
        self.go = threading.Event()

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, address: Any) -> None:
        """Say nothing of clients that have left."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        if self.path in self.server.held:
            self.server.go.wait(60)
        if not self.server.failing.get(self.path):
            return super().do_GET()
        status = self.server.failing[self.path].pop(0)
        if status:
            return self.send_error(status)
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve the files of a folder until the block ends."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go.set()
        server.shutdown()
        server.server_close()
        thread.join()
