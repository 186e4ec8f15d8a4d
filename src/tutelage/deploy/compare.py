"""Any models and their deployed files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime
from tutelage.deploy.bench import Bench, build_all, images_of
from tutelage.deploy.formats.making import Say
from tutelage.deploy.gpu import GpuTable, compare_on_gpu
from tutelage.evaluation.compare import evaluate, with_classes
from tutelage.evaluation.table import Table
from tutelage.models.registry import load_model
from tutelage.models.source import Model


def compare_deployed(
    models: Sequence[str | Model],
    *,
    data: str | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Table | GpuTable:
    """As `evaluation.compare.compare`, with each model also as ONNX, OpenVINO and int8 files, all on the CPU.

    On a CUDA GPU, the times of batches in each way in which the GPU can run a model, see `gpu.compare_on_gpu`.

    On the CPU, where the data has no parts of its own, up to a third of it (at most 300 images) is used to calibrate
    int8 and not to evaluate; without data, int8 is calibrated on synthetic images.

    Args:
        models: NAME@WEIGHTS, KIND:WHERE or a `Model` each; the others are compared with the first.
        data: labelled images, KIND:WHERE; None: no accuracy is measured.
        batch_size: images per batch, for the throughput.
        threads: of the CPU; None: as many as PyTorch chooses.
        device: ``cpu`` or None; or ``cuda``, or one GPU such as ``cuda:1``.
        say: called with a line before each step.

    Raises:
        TutelageError: a model, the data or the extra ``deploy`` is not there, or the device cannot be used.
    """
    if device is not None and device.partition(":")[0] == "cuda":
        if data is not None:
            raise TutelageError("--deploy on a GPU: only speed is measured there; leave --data out")
        return compare_on_gpu(models, device=device, say=say)
    if device not in {None, "cpu"}:
        raise TutelageError(
            "--deploy: deployed files are measured on the CPU or a CUDA GPU; leave --device out, or write --device cuda"
        )
    if threads:
        torch.set_num_threads(threads)
    material, subset = images_of(data)
    made = [load_model(model) if isinstance(model, str) else model for model in models]
    runtime = Runtime.on_cpu()
    made, notes = with_classes(made, subset, runtime)
    with TemporaryDirectory() as directory:
        bench = Bench(build_all(made, Path(directory), material, say), subset, batch_size)
        table = evaluate(
            bench.models,
            bench.rows,
            subset,
            runtime,
            batch_size=batch_size,
            answer=bench.answer,
            say=say,
        )
        table = bench.noted(bench.like_for_like(table), material)
        return Table(table.rows, [*table.notes, *notes])
