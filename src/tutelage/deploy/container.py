"""A Dockerfile for a deployed directory, whose image has what the server needs and no PyTorch."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_text
from tutelage.deploy.manifest import PREPROCESS

DOCKERFILE = "Dockerfile"
PORT = 8000
# What `tutelage serve` imports; tutelage itself is installed without its dependencies, since these include PyTorch.
SERVING = ("numpy", "pillow", "typer")
EXTRA = ("fastapi", "uvicorn", "prometheus_client", "python-multipart")
RUNTIME = {".xml": "openvino", ".onnx": "onnxruntime", ".param": "ncnn", ".tflite": "ai-edge-litert"}

TEMPLATE = """\
# Made by `tutelage serve --dockerfile`. Build and run it in this folder:
#     docker build -t classifier .
#     docker run --rm -p 127.0.0.1:{port}:{port} classifier
# Where tutelage is in no package index: --build-arg TUTELAGE="git+https://..." or the name of a wheel in this folder.
FROM python:{python}-slim
ARG TUTELAGE="tutelage=={version}"
RUN pip install --no-cache-dir {packages}
WORKDIR /model
COPY . .
RUN pip install --no-cache-dir --no-deps "$TUTELAGE"
USER 65534
EXPOSE {port}
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/healthz', timeout=3)"]
CMD ["tutelage", "serve", ".", "--host", "0.0.0.0", "--port", "{port}"]
"""


def write_dockerfile(directory: Path, model: Path, python: str = "3.11") -> Path:
    """Write a Dockerfile into a deployed directory, with the versions of packages that are installed here.

    Args:
        directory: the deployed directory.
        model: the file that is served, which decides the runtime.
        python: version of Python in the image.

    Raises:
        TutelageError: there is another Dockerfile, which is kept, or the directory is none of an export.
    """
    if not (directory / PREPROCESS).is_file():
        raise TutelageError(f"{directory}: no deployed directory (it has no {PREPROCESS})")
    path = directory / DOCKERFILE
    if path.exists() and "Made by `tutelage serve" not in path.read_text(encoding="utf-8", errors="replace"):
        raise TutelageError(f"{path}: is not of tutelage, so it is kept; move it away to get one")
    if model.suffix not in RUNTIME:
        raise TutelageError(
            f"{model}: a Dockerfile can be written for {', '.join(RUNTIME)} files; export with --format onnx"
        )
    names = [*SERVING, *EXTRA, RUNTIME[model.suffix]]
    packages = " ".join(f"{name}=={metadata.version(name)}" for name in names)
    version = metadata.version("tutelage")
    write_text(path, TEMPLATE.format(port=PORT, python=python, version=version, packages=packages))
    return path
