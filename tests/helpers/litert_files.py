"""LiteRT files of one linear layer, written by the format's own schema: no converter is needed."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}
Scale = tuple[float, int]  # scale and zero point


def write_litert(
    path: Path,
    weight: np.ndarray,
    bias: np.ndarray,
    side: int,
    scales: tuple[Scale, Scale, Scale] | None = None,
) -> Path:
    """Write a linear layer on the pixels of one NHWC image.

    Args:
        path: of the file.
        weight: (C, side * side * 3), float32 or int8.
        bias: (C,), float32, or int32 with the scales of input and weight multiplied.
        side: of an image, in pixels.
        scales: of input, weight and output, of an int8 file.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]  # the first buffer is empty by the format
    inner: list[Scale | None] = [None] * 4
    if scales:
        inner = [scales[0], scales[1], (scales[0][0] * scales[1][0], 0), scales[2]]
    shapes = ([1, side, side, 3], list(weight.shape), list(bias.shape), [1, len(bias)])
    kinds = (weight.dtype, weight.dtype, bias.dtype, weight.dtype)
    graph.tensors = []
    for shape, kind, data, scale in zip(shapes, kinds, (None, weight, bias, None), inner, strict=True):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = shape, TYPES[str(kind)], 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        if scale:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale[0]], [scale[1]]
        graph.tensors.append(tensor)
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if scales else 1
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [3]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
