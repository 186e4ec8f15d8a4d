"""What makes the files of each format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tutelage.deploy.formats import coreml, executorch, litert, ncnn, onnx, openvino
from tutelage.deploy.formats.making import Making

# In the order in which they are made: layers that OpenVINO's int8 left in float32 are left so in ONNX too.
MAKERS: Mapping[str, Callable[[Making], None]] = {
    "openvino": openvino.make,
    "onnx": onnx.make,
    "executorch": executorch.make,
    "ncnn": ncnn.make,
    "litert": litert.make,
    "coreml": coreml.make,
}
