"""The server of a deployed directory: what it answers, and that it answers after every hostile input."""

from __future__ import annotations

import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("onnxruntime", reason="needs the extra `deploy`")

from tests.helpers.served import BOUNDARY, Client, form, png, served, write_deployed

from tutelage.core.errors import TutelageError
from tutelage.deploy.container import write_dockerfile
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.serve import listen
from tutelage.deploy.uploads import Limits

RED, GREEN = png((200, 10, 10)), png((10, 200, 10))
LIMITS = Limits(megabytes=1, images=4, megapixels=2, waiting=8, seconds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deployed(tmp_path_factory.mktemp("served") / "deploy")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with served(Predictor(folder), LIMITS) as found:
        yield found


# --- answers


def test_several_images_are_classified_in_their_order(client: Client) -> None:
    status, answer = client.predict([("a.png", RED), ("b.png", GREEN)], "?top=2")
    assert status == 200
    first, second = answer["predictions"]
    assert (first["source"], first["guesses"][0]["label"]) == ("a.png", "red")
    assert (second["source"], second["guesses"][0]["label"]) == ("b.png", "green")
    assert len(first["guesses"]) == 2
    assert first["guesses"][0].keys() == {"label", "class_id", "index", "probability"}
    assert first["deferred"] is False


def test_it_gives_what_the_predictor_gives(client: Client, folder: Path) -> None:
    (own,) = Predictor(folder)(Image.open(io.BytesIO(RED)))
    _, answer = client.predict([("a.png", RED)])
    assert answer["predictions"][0]["guesses"][0]["probability"] == pytest.approx(own.probability)


def test_its_health_counters_and_description(client: Client) -> None:
    assert client.ask("GET", "/healthz") == (
        200,
        {"status": "ok", "model": "colours", "file": "model.onnx", "classes": 3},
    )
    before = client.ask("GET", "/metrics")[1]
    client.predict([("a.png", RED), ("b.png", RED)])
    client.ask("GET", "/made/up")
    after = client.ask("GET", "/metrics")[1]

    def value(text: str, name: str) -> float:
        return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(name)), 0))

    for name, more in (
        ("tutelage_images_total", 2),
        ('tutelage_requests_total{path="/predict",status="200"}', 1),
    ):
        assert value(after, name) == value(before, name) + more
    assert "/made/up" not in after
    status, described = client.ask("GET", "/openapi.json")
    assert status == 200
    assert described["paths"].keys() == {"/predict", "/healthz", "/metrics"}
    images = described["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert images["schema"]["properties"]["images"]["maxItems"] == 4
    status, page = client.ask("GET", "/docs")
    assert status == 200
    assert "POST /predict" in page
    assert "http://" not in page
    assert "https://" not in page


def test_images_of_low_confidence_go_to_the_teacher(folder: Path, tmp_path: Path) -> None:
    write_deployed(tmp_path / "deploy", cascade={"threshold": 0.9})
    both = Predictor(tmp_path / "deploy", defer_to=Predictor(folder))
    with served(both) as client:
        _, answer = client.predict([("a.png", RED), ("grey.png", png((99, 99, 99)))])
        assert [one["deferred"] for one in answer["predictions"]] == [False, True]
        assert answer["predictions"][1]["source"] == "grey.png"
        assert "tutelage_deferred_total 1.0" in client.ask("GET", "/metrics")[1]


def test_more_requests_than_may_wait_are_turned_away_at_once(folder: Path) -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow(_: Any) -> list[float]:
        begun.set()
        assert gate.wait(60)
        return [0.0, 0.0, 1.0]

    statuses: list[int] = []
    with served(Predictor(folder, defer_to=slow, threshold=1.0), Limits(waiting=1)) as client:
        ask = threading.Thread(target=lambda: statuses.append(client.predict([("a.png", RED)])[0]))
        ask.start()
        assert begun.wait(60)
        status, answer = client.predict([("b.png", RED)])
        assert (status, answer["detail"]) == (503, "too many requests are waiting; try again in a second")
        assert client.ask("GET", "/healthz")[0] == 200
        gate.set()
        ask.join(60)
        assert statuses == [200]
        assert client.predict([("b.png", RED)])[0] == 200


# --- hostile inputs


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A small PNG of many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(pixels, 9))
        + chunk(b"IEND", b"")
    )


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../a.png", RED)
    return stream.getvalue()


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    return stream.getvalue()


SIZE = struct.pack("<HH", 65535, 65535)
GIF = b"GIF89a" + SIZE + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + SIZE + b"\0\x02\0;"
FILES: dict[str, tuple[bytes, int]] = {
    "text": (b"hello", 422),
    "nothing": (b"", 422),
    "half a PNG": (RED[: len(RED) // 2], 422),
    "a broken PNG": (RED.replace(b"IDAT", b"IDAX"), 422),
    "the first bytes of a JPEG": (jpeg()[:40], 422),
    "a PNG that says it is huge": (bomb(100_000, 100_000), 413),
    "a PNG that is huge": (bomb(9000, 9000, bytes(9001) * 9000), 413),
    "a PNG just above the limit": (bomb(2000, 1001, bytes(2001) * 1001), 413),
    "a PNG without pixels": (bomb(10, 10), 422),
    "a PNG of no width": (bomb(0, 10), 422),
    "a GIF that says it is huge": (GIF, 413),
    "a TIFF of loops": (b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x01\0\0\0\x08\0\0\0", 422),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 422),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 422),
    "a pickle": (pickle.dumps({"a": 1}), 422),
    "an archive": (zipped(), 422),
    "a WebP of noise": (b"RIFF\x40\0\0\0WEBPVP8 " + bytes(range(64)), 422),
    "zeros": (bytes(100_000), 422),
}
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def answers_after(client: Client) -> None:
    assert client.ask("GET", "/healthz")[0] == 200
    assert client.predict([("a.png", RED)])[0] == 200


def one_line(answer: Any) -> str:
    assert answer.keys() == {"detail"}
    assert isinstance(answer["detail"], str)
    assert answer["detail"].isprintable()
    assert "Traceback" not in answer["detail"]
    return str(answer["detail"])


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line(name: str, client: Client) -> None:
    content, expected = FILES[name]
    status, answer = client.predict([("good.png", RED), ("evil.png", content)])
    assert (status, one_line(answer)[:9]) == (expected, "evil.png:")
    answers_after(client)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "a\x1b[2Jb.png", "x" * 5000, "\u202egnp.exe", "", "a;b"]
)
def test_a_files_name_is_only_a_name(name: str, client: Client) -> None:
    status, answer = client.predict([(name, b"hello")])
    assert 400 <= status < 500
    assert len(one_line(answer)) < 500
    answers_after(client)


REQUESTS: dict[str, tuple[str, str, bytes | None, dict[str, str], int]] = {
    "no body": ("POST", "/predict", None, {}, 415),
    "JSON": ("POST", "/predict", b"{}", {"Content-Type": "application/json"}, 415),
    "an image as the body": ("POST", "/predict", RED, {"Content-Type": "image/png"}, 415),
    "a form without a boundary": ("POST", "/predict", b"x", {"Content-Type": "multipart/form-data"}, 400),
    "another boundary": (
        "POST",
        "/predict",
        form([("a.png", RED)]),
        {"Content-Type": "multipart/form-data; boundary=other"},
        400,
    ),
    "half a form": ("POST", "/predict", form([("a.png", RED)])[:90], MULTIPART, 422),
    "an empty form": ("POST", "/predict", f"--{BOUNDARY}--\r\n".encode(), MULTIPART, 422),
    "another field": ("POST", "/predict", form([("a.png", RED)], "image"), MULTIPART, 422),
    "text in the place of a file": (
        "POST",
        "/predict",
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"\r\n\r\nhello\r\n--{BOUNDARY}--\r\n'.encode(),
        MULTIPART,
        422,
    ),
    "too many files": ("POST", "/predict", form([("a.png", RED)] * 5), MULTIPART, 400),
    "too large a body": ("POST", "/predict", form([("a.png", bytes(1_100_000))]), MULTIPART, 413),
    "no classes": ("POST", "/predict?top=0", form([("a.png", RED)]), MULTIPART, 422),
    "a word for the classes": ("POST", "/predict?top=all", form([("a.png", RED)]), MULTIPART, 422),
    "another method": ("PUT", "/predict", form([("a.png", RED)]), MULTIPART, 405),
    "another path": ("GET", "/../../etc/passwd", None, {}, 404),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_one_line(name: str, client: Client) -> None:
    method, path, body, headers, expected = REQUESTS[name]
    status, answer = client.ask(method, path, body, headers)
    assert status == expected, answer
    one_line(answer)
    answers_after(client)


def first_line(port: int, sent: bytes, close: bool = False) -> str:
    """The first line that a server answers to raw bytes; empty where it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        try:
            raw.sendall(sent)
            return "" if close else raw.makefile("rb").readline().decode("latin-1").strip()
        except ConnectionError:
            return ""


HEAD = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n".encode()
RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    "a length below zero": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length that is a word": HEAD + b"Content-Length: many\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a chunk of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a header without an end": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 200_000,
    "a body of unknown length that does not end": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 20,
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_close_the_connection_or_are_refused(name: str, client: Client) -> None:
    line = first_line(client.port, RAW[name])
    assert line == "" or line.startswith("HTTP/1.1 4"), line
    answers_after(client)


def test_a_client_that_leaves_or_is_slow_holds_nothing(client: Client) -> None:
    first_line(client.port, HEAD + b"Content-Length: 5000\r\n\r\n--", close=True)
    answers_after(client)
    begun = time.monotonic()
    assert first_line(client.port, HEAD + b"Content-Length: 5000\r\n\r\n--").startswith("HTTP/1.1 408")
    assert time.monotonic() - begun < 20
    answers_after(client)
    assert "tutelage_waiting 0.0" in client.ask("GET", "/metrics")[1]


# --- starting it


def test_a_port_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TutelageError, match=f"--host 127.0.0.1 --port {port}: .*; use another"):
            listen("127.0.0.1", port)


def test_the_command_serves_on_this_machine_without_pytorch_and_stops(folder: Path) -> None:
    code = (
        "import sys\nfrom tutelage.cli import main\ntry:\n    main(['serve', sys.argv[1], '--port', '0'])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{line.split()[0]}healthz", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
        process.send_signal(2)
        assert process.stdout.read().strip() == "False"
    assert process.returncode == 0


def test_the_dockerfile_has_the_packages_of_the_server_and_keeps_another(folder: Path) -> None:
    text = write_dockerfile(folder, folder / "model.onnx").read_text()
    packages = next(
        line for line in text.splitlines() if line.startswith("RUN pip install --no-cache-dir numpy")
    )
    for name in ("onnxruntime==", "fastapi==", "uvicorn==", "prometheus_client==", "python-multipart=="):
        assert name in packages
    assert "torch" not in packages
    assert '"serve", ".", "--host", "0.0.0.0"' in text
    write_dockerfile(folder, folder / "model.onnx")  # its own is made again
    (folder / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(TutelageError, match="is not of tutelage, so it is kept"):
        write_dockerfile(folder, folder / "model.onnx")
    (folder / "Dockerfile").unlink()
    with pytest.raises(
        TutelageError,
        match=r"model\.pte: a Dockerfile can be written for \.xml, \.onnx, \.param, \.tflite files",
    ):
        write_dockerfile(folder, folder / "model.pte")
