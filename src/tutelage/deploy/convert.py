"""A PyTorch classifier as ONNX, and that as OpenVINO's IR. Both take any batch size and contain their manifest."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.runtime import REMEDY

INPUT, OUTPUT = "image", "logits"
NAMESPACE = "tutelage"  # of the manifest's entries in an IR


def require_deploy() -> None:
    """Import the packages that exporting needs.

    Raises:
        TutelageError: a package of the extra ``deploy`` is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use to Intel
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        try:
            with quiet():
                importlib.import_module(name)
        except ImportError:
            raise TutelageError(f"exporting needs {name}, which is not installed: {REMEDY}") from None
    logging.getLogger("nncf").setLevel(logging.ERROR)


def to_onnx(module: nn.Module, spec: InputSpec) -> Any:
    """Export (B, 3, H, W) normalised float32 to (B, C) logits, B free.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        TutelageError: PyTorch's exporter cannot follow the model.
    """
    twin = copy.deepcopy(module).cpu().float().eval().to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 3, spec.height, spec.width)
    try:
        with quiet():
            program = torch.onnx.export(
                twin,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    # the exporter's stages raise exceptions of their own kinds, without a common base
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TutelageError(
            f"{type(module).__name__}: cannot be exported to ONNX ({reason[0][:200]})"
        ) from None
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    return proto


def save_onnx(proto: Any, path: Path, manifest: Manifest) -> None:
    """Write an ONNX model with its manifest in ``metadata_props``."""
    onnx: Any = importlib.import_module("onnx")
    onnx.helper.set_model_props(proto, manifest.properties())
    proto.producer_name = NAMESPACE
    onnx.save(proto, path)


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which warns about its own internals for every model."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
