"""A PyTorch classifier as ONNX, and that as OpenVINO's IR. Both take any batch size and contain their manifest."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.onnxruntime import external_data

INPUT, OUTPUT = "image", "logits"
NAMESPACE = "tutelage"  # of the manifest's entries in an IR
EMBEDDED = 2**31 - 2**27  # bytes of weights in an ONNX file, which leaves 128 MiB to the graph


def to_onnx(module: nn.Module, spec: InputSpec) -> Any:
    """Export (B, 3, H, W) normalised float32 to (B, C) logits, B free.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        TutelageError: PyTorch's exporter cannot follow the model.
    """
    failure: Exception | None = None
    for network in ways(module):
        try:
            proto = _exported(network, spec).model_proto
        # the exporter's stages raise exceptions of their own kinds, without a common base
        except Exception as error:
            failure = error
            continue
        _strip(proto)
        return proto
    assert failure is not None
    raise TutelageError(
        f"{type(module).__name__}: cannot be exported to ONNX ({cause(failure)}); deploy another architecture"
    )


def _exported(module: nn.Module, spec: InputSpec) -> Any:
    with quiet():
        return torch.onnx.export(
            module,
            (torch.zeros(2, 3, spec.height, spec.width),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )


def ways(module: nn.Module) -> Iterator[nn.Module]:
    """A copy of a network as it is, and then with timm's attention layers in single steps, where it has fused ones.

    The copy is in float32, on the CPU. The exporter can follow single steps in more networks; the outputs are the same
    but for rounding. Fused attention is kept where it can be exported, since runtimes know it.
    """
    twin = copy.deepcopy(module).cpu().float().eval().to(memory_format=torch.contiguous_format)
    yield twin
    layers = [layer for layer in twin.modules() if getattr(layer, "fused_attn", False)]
    for layer in layers:
        layer.fused_attn = False  # type: ignore[assignment]
    if layers:
        yield twin


def cause(error: BaseException) -> str:
    """The first cause of an exporter's error in one line, without the colours of its report."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))[:200]


def save_onnx(proto: Any, path: Path, manifest: Manifest) -> None:
    """Write an ONNX model with its manifest in ``metadata_props``."""
    onnx: Any = importlib.import_module("onnx")
    onnx.helper.set_model_props(proto, manifest.properties())
    proto.producer_name = NAMESPACE
    write_onnx(proto, path)


def write_onnx(proto: Any, path: Path) -> None:
    """Write an ONNX model as it is.

    Weights of more than `EMBEDDED` bytes go to a file beside it (``.onnx.data``): a protobuf ends at 2 GiB.
    """
    onnx: Any = importlib.import_module("onnx")
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= EMBEDDED:
        onnx.save(proto, path)
        return
    data = external_data(path)
    data.unlink(missing_ok=True)  # else it would be appended to
    onnx.save(proto, path, save_as_external_data=True, location=data.name)
    onnx.load_external_data_for_model(proto, str(path.parent))  # saving has taken the weights out


def to_openvino(onnx_file: Path) -> Any:
    """An ONNX file as an ``openvino.Model``."""
    openvino: Any = importlib.import_module("openvino")
    # read_model would leave the weights of depthwise convolutions behind reshapes, where NNCF does not find them
    with _unreported():
        return openvino.convert_model(onnx_file)


def save_openvino(model: Any, path: Path, manifest: Manifest) -> None:
    """Write ``path`` (.xml) and its ``.bin``, with the manifest in ``rt_info``."""
    openvino: Any = importlib.import_module("openvino")
    for key, value in manifest.properties().items():
        model.set_rt_info(value, [NAMESPACE, key])
    openvino.save_model(model, path, compress_to_fp16=False)
    # half of the XML is indentation, as much as a tenth of a small int8 model
    path.write_bytes(re.sub(rb">\s+<", b"><", path.read_bytes()))


def _strip(proto: Any) -> None:
    """Remove the exporter's notes, which contain stack traces with paths of this machine."""
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        for noted in _noted(graph):
            del noted.metadata_props[:]
            noted.doc_string = ""


def _noted(graph: Any) -> Iterator[Any]:
    yield graph
    yield from graph.node
    yield from graph.value_info
    for name in ("input", "output", "initializer"):
        entries = getattr(graph, name)
        if entries and not isinstance(entries[0], str):
            yield from entries


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep OpenVINO's converter from reporting its use to Intel: in a CI it does not."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
