"""The package for Core ML, made by coremltools from PyTorch's exported program."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.formats.making import Making
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.coreml import INPUT, OUTPUT


def make(making: Making) -> None:
    """Write ``model.mlpackage``."""
    model = making.model
    making.attempt(
        "model.mlpackage", lambda path: to_coreml(model.module, model.input_spec, path, making.manifest)
    )


def to_coreml(module: nn.Module, spec: InputSpec, path: Path, manifest: Manifest) -> None:
    """Write (1, 3, H, W) normalised float32 to (1, C) logits as an ML program in float16, for iOS 15 and macOS 12.

    Args:
        module: on any device; it is not changed.
        spec: its input.
        path: the package, a folder whose name ends in ``.mlpackage``.
        manifest: goes into the package's metadata.

    Raises:
        TutelageError: PyTorch's exporter cannot follow the model, or an operation has no counterpart; it is named.
    """
    tools: Any = importlib.import_module("coremltools")
    twin = copy.deepcopy(module).cpu().float().eval().to(memory_format=torch.contiguous_format)
    shape = (1, 3, spec.height, spec.width)
    with TemporaryDirectory(prefix="tutelage-") as folder, _errors_kept() as errors:
        try:
            with quiet():
                # coremltools 9.0 fails on a module that torch 2.14 has traced, not on an exported program
                program = torch.export.export(twin, (torch.zeros(shape),)).run_decompositions({})
                made = tools.convert(
                    program,
                    inputs=[tools.TensorType(name=INPUT, shape=shape)],
                    outputs=[tools.TensorType(name=OUTPUT)],
                    convert_to="mlprogram",
                    compute_precision=tools.precision.FLOAT16,
                    minimum_deployment_target=tools.target.iOS15,
                    package_dir=str(Path(folder) / path.name),  # else it stays until the process ends
                    skip_model_load=True,
                )
                made.user_defined_metadata.update(manifest.properties())
                made.save(str(path))
        except Exception as error:  # of the exporter or of coremltools, without a common base
            found = re.search(r"converting '([^']+)' op", " ".join(errors))
            operation = f"operation {found[1]}: " if found else ""
            raise TutelageError(
                f"{type(module).__name__}: cannot be converted to Core ML ({operation}{one_line(error)[:200]}); "
                "deploy another architecture"
            ) from None


@contextlib.contextmanager
def _errors_kept() -> Iterator[list[str]]:
    """Keep coremltools' errors, which name the operation, and its progress bars from the terminal."""
    kept: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("coremltools")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield kept
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
