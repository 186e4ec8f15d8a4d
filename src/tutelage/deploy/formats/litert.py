"""The files for LiteRT: made from the PyTorch module by litert-torch, and quantised by ai-edge-quantizer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.convert import cause, ways
from tutelage.deploy.formats.litert_file import save_litert
from tutelage.deploy.formats.litert_int8 import Quantiser
from tutelage.deploy.formats.making import Making
from tutelage.deploy.quiet import quiet

FLOAT_FILE, INT8_FILE, INT4_FILE = "model.tflite", "model-int8.tflite", "model-int4.tflite"


def make(making: Making) -> None:
    """Write ``model.tflite``, and the quantised files where there are images to calibrate on.

    These are ``model-int8.tflite`` and, where it is wanted, ``model-int4.tflite``.
    """

    def converted(path: Path) -> bytes:
        content = to_litert(making.model.module, making.model.input_spec)
        save_litert(content, path, making.manifest)
        return content

    def quantised(path: Path) -> Quantiser:
        assert content is not None
        quantiser = Quantiser(content, making)
        save_litert(quantiser.best(), path, making.manifest)
        return quantiser

    def smaller(path: Path) -> None:
        assert quantiser is not None
        save_litert(quantiser.small(), path, making.manifest)

    content = making.attempt(FLOAT_FILE, converted)
    if content is None or making.calibration is None:
        return
    quantiser = making.attempt(INT8_FILE, quantised)
    if quantiser is not None and making.int4:
        making.attempt(INT4_FILE, smaller)


def to_litert(module: nn.Module, spec: InputSpec) -> bytes:
    """Convert (1, 3, H, W) normalised float32 to (1, C) logits.

    Returns:
        The content of a ``.tflite`` file.

    Raises:
        TutelageError: litert-torch cannot convert the model; the line names the operation.
    """
    litert: Any = importlib.import_module("litert_torch")
    litert.config.show_progress = False
    failure: Exception | None = None
    for network in ways(module):
        try:
            with quiet():
                made = litert.convert(network, (torch.zeros(1, 3, spec.height, spec.width),))
                return bytes(made.model_content())
        # the converter's stages raise exceptions of their own kinds, without a common base
        except Exception as error:
            failure = error
    assert failure is not None
    raise TutelageError(
        f"{type(module).__name__}: cannot be converted to LiteRT ({cause(failure)}); deploy another architecture"
    )
