"""One LiteRT (TensorFlow Lite) file in its interpreter. Needs NumPy, and ai-edge-litert when a file is opened."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np


class LiteRTFile:
    """A loaded file. One thread at a time may call it.

    Attributes:
        shape: of the input, with the images that the file takes at a time in front, mostly one.
        dtype: of the input.
        scale: of an integer input: real = scale * (integer - zero_point); None: of a float input.
        zero_point: as `scale`.
    """

    def __init__(self, file: Path | bytes, threads: int | None = None) -> None:
        """Load a file, or its content.

        Args:
            file: where it is, or the bytes of it.
            threads: of the CPU; None: as LiteRT chooses.

        Raises:
            ImportError: ai-edge-litert is not installed.
            ValueError, RuntimeError: the file is damaged, or has an operation that LiteRT cannot run.
        """
        module: Any = importlib.import_module("ai_edge_litert.interpreter")
        content = {"model_content": file} if isinstance(file, bytes) else {"model_path": str(file)}
        self._interpreter = module.Interpreter(**content, num_threads=threads)
        self._interpreter.allocate_tensors()
        given = self._interpreter.get_input_details()[0]
        scale, zero_point = given["quantization"]
        self._input = given["index"]
        self._output = self._interpreter.get_output_details()[0]
        self.shape = tuple(map(int, given["shape"]))
        self.dtype = np.dtype(given["dtype"])
        self.scale, self.zero_point = float(scale) or None, int(zero_point)

    @property
    def num_outputs(self) -> int:
        """Numbers that the file gives for an image: the last dimension of its first output."""
        return int(self._output["shape"][-1])

    @property
    def signature(self) -> tuple[str, str]:
        """Names of the file's first signature and of its first input."""
        name, entry = next(iter(self._interpreter.get_signature_list().items()))
        return str(name), str(entry["inputs"][0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run the first output for as many images as `shape` says; quantised outputs are made real numbers.

        Raises:
            RuntimeError: an operation of the file cannot be run.
        """
        self._interpreter.set_tensor(self._input, images)
        self._interpreter.invoke()
        found = np.asarray(self._interpreter.get_tensor(self._output["index"]))
        scale, zero_point = self._output["quantization"]
        return (found.astype(np.float32) - zero_point) * scale if scale else found


def main(folder: str) -> None:
    """Run ``model.tflite`` of a folder on each of its ``images.npy``, and print why where it cannot be run."""
    try:
        file = LiteRTFile(Path(folder) / "model.tflite")
        for images in np.load(Path(folder) / "images.npy"):
            file(images)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
