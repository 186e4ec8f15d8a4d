"""The files for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.deploy.convert import save_onnx
from tutelage.deploy.formats.making import ONNX_FILE, Making


def make(making: Making) -> None:
    """Write ``model.onnx``, and ``model-int8.onnx`` where there are images to calibrate on."""

    def exported(path: Path) -> Any:
        return making.onnx  # which writes the file

    model = making.attempt(ONNX_FILE, exported)
    quantiser = making.quantiser
    if quantiser is not None and model is not None:
        making.attempt(
            "model-int8.onnx", lambda path: save_onnx(quantiser.onnx(model), path, making.manifest)
        )
