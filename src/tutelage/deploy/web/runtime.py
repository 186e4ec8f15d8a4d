"""ONNX Runtime for browsers: one pinned version from npm, kept in the user's cache."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import write_bytes

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
TARBALL = f"{PACKAGE}-{VERSION}.tgz"
DOWNLOAD_MB = 33
REGISTRY = "https://registry.npmjs.org"
SECONDS = 60  # without an answer from the registry

# Files of the package, and their names on the page. The module is renamed, since some servers do not know that ``.mjs``
# is JavaScript, and browsers run no module that is served as something else.
FILES = {
    "ort.wasm.min.js": "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}


def web_runtime(
    formats: Sequence[str], given: Path | None = None, say: Callable[[str], object] = lambda line: None
) -> Path:
    """Return the package's tarball, from the cache or downloaded; its integrity hash is checked each time.

    Args:
        formats: of the export, ``onnx`` among them.
        given: a tarball that was downloaded elsewhere, which is put into the cache.
        say: called with a line before a download.

    Raises:
        TutelageError: ONNX files are not made, the registry is out of reach, or the file is another one.
    """
    if "onnx" not in formats:
        raise TutelageError(
            f"--web: runs the ONNX file, but the formats are {', '.join(formats)}; add --format onnx"
        )
    cached = cache_place()
    if given is not None:
        content = _read(given)
        if not _is_right(content):
            raise TutelageError(
                f"--web-runtime {given}: is not {TARBALL} of npm; get it with `npm pack {PACKAGE}@{VERSION}`"
            )
        write_bytes(cached, content)
    elif not (cached.is_file() and _is_right(_read(cached))):
        say(f"{PACKAGE} {VERSION} is downloaded from npm ({DOWNLOAD_MB} MB, once)")
        write_bytes(cached, _download(cached))
    return cached


def unpack(tarball: Path, folder: Path) -> None:
    """Write the files that the page needs into a folder."""
    with tarfile.open(tarball, "r:gz") as package:
        for name, here in FILES.items():
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None  # the hash of the tarball was checked
            write_bytes(folder / here, content.read())


def cache_place() -> Path:
    """Return where the tarball is kept: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "tutelage" / "npm" / TARBALL


def registry(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> str:
    """Return npm's registry, as the environment or ``~/.npmrc`` names it."""
    named = environment.get("npm_config_registry") or environment.get("NPM_CONFIG_REGISTRY")
    try:
        lines = ((home or Path.home()) / ".npmrc").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, RuntimeError):
        lines = []
    pairs = [line.partition("=") for line in lines]
    configured = [value.strip().strip("\"'") for key, _, value in pairs if key.strip() == "registry"]
    return (named or (configured[-1] if configured else REGISTRY)).rstrip("/")


def _download(cached: Path) -> bytes:
    npm = shutil.which("npm")
    try:
        content = _by_npm(npm) if npm else _directly()
    except (OSError, subprocess.SubprocessError) as error:
        raise TutelageError(
            f"--web: {PACKAGE} {VERSION} cannot be downloaded ({one_line(error)[:160]}); where there is a network run "
            f"`npm pack {PACKAGE}@{VERSION}`, and give the file with --web-runtime {TARBALL} or copy it to {cached}"
        ) from None
    if not _is_right(content):
        raise TutelageError(
            f"--web: the registry gave another {TARBALL} than the one that is known ({INTEGRITY[:20]}...); "
            f"give the right one with --web-runtime {TARBALL}"
        )
    return content


def _by_npm(npm: str) -> bytes:
    """Download with npm, which knows proxies, and registries with a password."""
    options = [
        "--ignore-scripts",
        "--fetch-retries=1",
        f"--fetch-timeout={1000 * SECONDS}",
        "--loglevel=error",
    ]
    with TemporaryDirectory() as place:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", place, *options]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise OSError(" ".join(done.stderr.replace("npm error", "").split()) or "npm failed")
        return (Path(place) / TARBALL).read_bytes()


def _directly() -> bytes:
    address = f"{registry()}/{PACKAGE}/-/{TARBALL}"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read()
    except ValueError as error:  # an address without a scheme
        raise OSError(str(error)) from None
    return content


def _is_right(content: bytes) -> bool:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return f"sha512-{digest}" == INTEGRITY


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TutelageError(
            f"--web-runtime {path}: cannot be read ({error.strerror}); give the file that "
            f"`npm pack {PACKAGE}@{VERSION}` makes"
        ) from None
