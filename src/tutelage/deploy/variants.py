"""The files that a model is deployed as, and how each is run."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.deploy.runtime import Arithmetic


@dataclass(frozen=True)
class Variant:
    """A file and how it is run.

    Attributes:
        role: its name in the table.
        file: its name in the directory.
        arithmetic: precision of the layers that are not int8.
        int8: whether the file is quantised.
    """

    role: str
    file: str
    arithmetic: Arithmetic = "f32"
    int8: bool = False

    @property
    def shown(self) -> str:
        """The file, and its precision where it has several: ``model.xml (bf16)``."""
        return self.file if self.arithmetic == "f32" else f"{self.file} ({self.arithmetic})"

    @property
    def exact(self) -> bool:
        """Whether its logits should equal PyTorch's, apart from the order of float32 sums."""
        return self.arithmetic == "f32" and not self.int8


VARIANTS = (
    Variant("onnx", "model.onnx"),
    Variant("onnx-int8", "model-int8.onnx", int8=True),
    Variant("openvino", "model.xml"),
    Variant("openvino-bf16", "model.xml", arithmetic="bf16"),
    Variant("int8", "model-int8.xml", int8=True),
)
