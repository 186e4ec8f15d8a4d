"""Write the folder of the page: any static host can serve it, and it loads nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tutelage.core.files import link_file, write_bytes, write_text
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.web.runtime import FILES, VERSION, unpack

FOLDER = "web"
RUNTIME = "onnxruntime-web"  # the folder of its files
WASM = FILES["ort-wasm-simd-threaded.wasm"]
# The int8 file runs in browsers too, but in WebAssembly it takes 1.6 times as long as float32 (lite0), and
# its sums are rounded otherwise than by the kernels that it was checked with: probabilities differ by up to 0.012.
MODEL = "model.onnx"


def write_folder(folder: Path, model: Path, manifest: Manifest, tarball: Path) -> None:
    """Write the page, its model, and the runtime.

    Args:
        folder: where to, which is made.
        model: the ONNX file, which passed its checks.
        manifest: of the model.
        tarball: of the runtime, see `web_runtime`.

    Raises:
        TutelageError: the disk is full or the folder cannot be written.
    """
    page = files(__package__) / "page"
    unpack(tarball, folder / RUNTIME)
    write_bytes(folder / RUNTIME / "LICENSE", (page / "onnxruntime-web-license.txt").read_bytes())
    for name in ("app.js", "preprocess.js"):
        write_bytes(folder / name, (page / name).read_bytes())
    colours = files("tutelage.core") / "colours.css"  # those of a run's report
    write_bytes(folder / "style.css", colours.read_bytes() + (page / "style.css").read_bytes())
    link_file(model, folder / model.name)
    manifest.write(folder)
    write_text(folder / "index.html", _index(folder, model, manifest, (page / "index.html.j2").read_text()))


def _index(folder: Path, model: Path, manifest: Manifest, template: str) -> str:
    spec, size = manifest.input_spec, model.stat().st_size
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        model=manifest.model,
        file=model.name,
        bytes=size,
        runtime_bytes=(folder / RUNTIME / WASM).stat().st_size,
        size=f"{size / 1e6:.1f} MB",
        classes=f"{len(manifest.labels):,} classes",
        width=spec.width,
        height=spec.height,
        version=VERSION,
    )
