"""A deployed directory made without PyTorch, and a server of it in a thread of its own."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvicorn
from onnx import TensorProto, helper
from PIL import Image

from tutelage.data.input_spec import InputSpec
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.serve import listen, make_app
from tutelage.deploy.uploads import Limits

CLASSES = ("red", "green", "blue")
BOUNDARY = "xxTESTxx"
PX = 32


def write_deployed(directory: Path, **manifest: Any) -> Path:
    """Write a model whose logits are ten times the mean of each colour channel, for images of 32 pixels."""
    directory.mkdir(parents=True, exist_ok=True)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, PX, PX])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    ten = helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0])
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Mul", ["flat", "ten"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "colours", [image], [logits], [ten])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, directory / "model.onnx")
    spec = InputSpec(PX, PX, (0.0,) * 3, (1.0,) * 3)
    Manifest("colours", spec, CLASSES, CLASSES, **manifest).write(directory)
    return directory


def png(colour: tuple[int, int, int] = (200, 10, 10), size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def noise(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG of the size of a small photograph."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def form(files: list[tuple[str, bytes]], field: str = "images") -> bytes:
    """The body of a form with files."""
    parts = []
    for name, content in files:
        head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        parts.append(
            f"--{BOUNDARY}\r\n{head}Content-Type: image/png\r\n\r\n".encode("utf-8", "surrogateescape")
            + content
        )
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


class Client:
    """Asks a server at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and the content of an answer, parsed where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.getheader("Content-Type") or ""
            return answer.status, json.loads(content) if "json" in kind else content.decode()
        finally:
            connection.close()

    def predict(self, files: list[tuple[str, bytes]], query: str = "") -> tuple[int, Any]:
        """Send files as a browser does."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.ask("POST", f"/predict{query}", form(files), headers)


@contextmanager
def served(predictor: Predictor, limits: Limits | None = None) -> Iterator[Client]:
    """Serve until the end of the block."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(predictor, limits), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
