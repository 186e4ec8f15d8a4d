"""The files for OpenVINO, made from the ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.deploy.convert import save_openvino, to_openvino
from tutelage.deploy.formats.making import ONNX_FILE, Making


def make(making: Making) -> None:
    """Write ``model.xml``, and ``model-int8.xml`` where there are images to calibrate on."""

    def converted(path: Path) -> Any:
        _ = making.onnx  # the file is there from now on
        made = to_openvino(making.directory / ONNX_FILE)
        save_openvino(made, path, making.manifest)
        return made

    model = making.attempt("model.xml", converted)
    quantiser = making.quantiser
    if quantiser is not None and model is not None:
        making.attempt(
            "model-int8.xml", lambda path: save_openvino(quantiser.openvino(model), path, making.manifest)
        )
