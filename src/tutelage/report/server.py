"""A server that shows the page of a run during the run, to browsers on this machine only."""

from __future__ import annotations

import hashlib
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.run_dir import Run
from tutelage.report.build import contents, find_runs
from tutelage.report.page import encode, render_main, render_page
from tutelage.report.run_records import fingerprint

ADDRESS = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost"}  # host names that a browser on this machine uses
FRESH = "/main"  # the path at which an open page fetches newer content

HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Content:
    """The content that is served: the whole page, the part of it that changes, and an ETag of that part."""

    page: bytes
    main: bytes
    tag: str


class Page:
    """The page of a run, of its seeds or of a study; it is rendered again when a file has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: object = None
        self._content: Content | None = None

    def content(self) -> Content:
        """Return the current page."""
        with self._lock:
            # the directory itself too: for several seeds it has their summary
            seen = [fingerprint(run) for run in (*find_runs([self.path]), Run(self.path))]
            if self._content is None or seen != self._seen:
                self._content, self._seen = self._make(), seen
            return self._content

    def _make(self) -> Content:
        title, sections = contents(self.path)
        main = encode(render_main(sections))
        page = encode(render_page(title, sections, watch=FRESH))
        return Content(page, main, f'"{hashlib.sha256(main).hexdigest()[:32]}"')


class Server(ThreadingHTTPServer):
    """Serves one page on the loopback address.

    Args:
        path: of a run, or of a directory of runs.
        port: 0 for any free port.

    Raises:
        TutelageError: there is no run, or the port is in use.
    """

    daemon_threads = True

    def __init__(self, path: Path, port: int = 0) -> None:
        find_runs([path])
        self.page = Page(path)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise TutelageError(
                f"--port {port}: {error.strerror}; use another one, or 0 for any free port"
            ) from None
        self.hosts = {f"{name}:{self.server_port}" for name in NAMES}

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close the connection during a response."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def start(self) -> None:
        """Serve from another thread, until `stop`."""
        threading.Thread(target=self.serve_forever, name="tutelage-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop serving, and free the port."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "tutelage", ""
    timeout = 10

    def do_GET(self) -> None:
        # Another host name can lead here by DNS rebinding, and a foreign page must not read the run.
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            return self._answer(HTTPStatus.FORBIDDEN, b"this server accepts requests to localhost only\n")
        if self.path not in {"/", FRESH}:
            return self._answer(HTTPStatus.NOT_FOUND, b"there is no such page\n")
        content = self.server.page.content()
        if self.path == FRESH and self.headers.get("If-None-Match") == content.tag:
            return self._answer(HTTPStatus.NOT_MODIFIED, b"", content.tag)
        self._answer(HTTPStatus.OK, content.page if self.path == "/" else content.main, content.tag)

    def _answer(self, status: HTTPStatus, body: bytes, tag: str = "") -> None:
        self.send_response(status)
        headers = HEADERS | ({"ETag": tag} if tag else {})
        if status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
            headers = headers | {"Content-Type": "text/plain; charset=utf-8"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since a page asks every two seconds."""
