"""The kinds of models beside timm's: ``KIND:WHERE``, a module for each, imported when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.models.source import Loader

# Each names its module in this folder, which has a function `load` (see `models.source.Loader`).
MODULES = {
    "torchvision": "torchvision",
    "hf": "transformers",
    "onnx": "onnx",
    "tflite": "litert",
    "predictions": "predictions",
    "zero-shot": "zero_shot",
    "torch": "torch",
}
READ_WEIGHTS = {"torchvision", "hf", "zero-shot", "torch"}  # these take NAME@FILE and NAME@none themselves


def loader(kind: str) -> Loader:
    """Import the function that loads models of a kind."""
    load: Loader = importlib.import_module(f"{__name__}.{MODULES[kind]}").load
    return load
