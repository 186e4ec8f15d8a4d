"""LiteRT files as what they consist of: their operations, their constants, and how they are written."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.deploy.convert import INPUT, NAMESPACE, OUTPUT
from tutelage.deploy.manifest import Manifest

LAYERS: tuple[str, ...] = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
)  # LiteRT's names of what has weights
ALIGNMENT = 16  # bytes; LiteRT's schema wants it of weights, and flatbuffers' Python code does not see to it


def save_litert(content: bytes, path: Path, manifest: Manifest) -> None:
    """Write a LiteRT model with its manifest in its metadata, under names such as ``tutelage.labels``.

    Tensors get the names of their modules, such as ``blocks.5.1.bn1``. The converter's have the class of each module
    too, which is 90 kB of EfficientNet-Lite0.
    """
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = _read(content)
    model.metadata = list(model.metadata or [])
    signature = model.signatureDefs[0]
    signature.inputs[0].name, signature.outputs[0].name = INPUT, OUTPUT
    for key, value in manifest.properties().items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = value.encode()
        entry.name, entry.buffer = f"{NAMESPACE}.{key}", len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    for graph in model.subgraphs:
        taken: set[str] = set()
        for tensor in graph.tensors:
            short = _short(_name(tensor))
            numbered = (f"{short}.{number}" for number in itertools.count(1))
            tensor.name = next(name for name in itertools.chain([short], numbered) if name not in taken)
            taken.add(tensor.name)
    path.write_bytes(_packed(model, len(content)))


def _packed(model: Any, size: int) -> bytes:
    """A model as the bytes of a file.

    Weights are aligned as the schema wants it. Equal vectors are written once: each layer has a zero point, which is 0,
    for each channel of its weights and of its bias, which would be 6% of EfficientNet-Lite0 in int8.
    """
    flatbuffers: Any = importlib.import_module("flatbuffers")
    written: dict[tuple[str, bytes], int] = {}

    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802, the base's name
            content = x.tobytes()
            key = x.dtype.str, content
            if key not in written:
                self.StartVector(x.itemsize, x.size, ALIGNMENT)
                self.head -= len(content)
                self.Bytes[self.head : self.head + len(content)] = content
                written[key] = self.EndVector()
            return written[key]

    for buffer in model.buffers:
        if buffer.data is not None:  # else its bytes would be written one by one
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    builder = Builder(2 * size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def last_layers(content: bytes) -> tuple[tuple[str, str], ...]:
    """The classifier of a model, and the convolution before it where no other layer is between them.

    Returns:
        For each the kind of the operation and the name of its output; the classifier first. Nothing where the last
        layer is no FULLY_CONNECTED.
    """
    model = _read(content)
    (graph, *_) = model.subgraphs
    layers = ((_kind(model, one), _name(graph.tensors[one.outputs[0]])) for one in reversed(graph.operators))
    pairs = zip(("FULLY_CONNECTED", "CONV_2D"), (one for one in layers if one[0] in LAYERS), strict=False)
    return tuple(layer for _, layer in itertools.takewhile(lambda pair: pair[0] == pair[1][0], pairs))


def kinds(content: bytes) -> list[str]:
    """LiteRT's names of the kinds of operations of a model, such as ``MEAN``, in the order in which they come."""
    model = _read(content)
    return list(dict.fromkeys(_kind(model, one) for graph in model.subgraphs for one in graph.operators))


def with_finite_padding(content: bytes, ranges: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Pad by the smallest or largest value that occurs where a model pads by minus or plus infinity.

    PyTorch's max pooling with padding becomes such a PADV2. ai-edge-quantizer takes the infinity for a value of the
    range, so that the scales after it are infinite too, and with these LiteRT 2.3 ends by a fault of memory. An integer
    cannot be smaller than the smallest value of its range, so that nothing is lost.

    Args:
        content: of a float model.
        ranges: `min` and `max` of each tensor on the calibration images, by its name.

    Returns:
        The model and the ranges with which it can be quantised; both as they were where there is no such padding.
    """
    model, found, changed = _read(content), dict(ranges), False
    for graph in model.subgraphs:
        for one in graph.operators:
            if _kind(model, one) != "PADV2":
                continue
            before, value = graph.tensors[one.inputs[0]], graph.tensors[one.inputs[2]]
            buffer = model.buffers[value.buffer]
            padding = np.frombuffer(b"" if buffer.data is None else bytes(buffer.data), np.float32)
            if np.isfinite(padding).all():  # also where it is no constant
                continue
            real = ranges[_name(before)]
            buffer.data = np.clip(padding, real["min"], real["max"]).astype(np.float32).view(np.uint8)
            found[_name(graph.tensors[one.outputs[0]])] = real
            changed = True
    return (_packed(model, len(content)), found) if changed else (content, found)


def _read(content: bytes) -> Any:
    """A model as the objects of its schema, which may be changed."""
    tools: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    return tools.read_model_from_bytearray(bytearray(content))


def _kind(model: Any, operation: Any) -> str:
    tools: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    return str(tools.opcode_to_name(model, operation.opcodeIndex))


def _short(name: str) -> str:
    """Turn ``timm.models.EfficientNet/torch.nn.Sequential_blocks/timm.Block_1;...`` into ``blocks.1``."""
    if "/" not in name:
        return name
    for path in name.split(";"):  # of the operations that became one, the last one first
        modules = (part.rpartition(".")[2].partition("_")[2] for part in path.split("/"))
        if short := ".".join(filter(None, modules)):
            return short
    return name


def _name(tensor: Any) -> str:
    return str(tensor.name.decode())
