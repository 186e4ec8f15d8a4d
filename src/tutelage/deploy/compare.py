"""Any models and their deployed files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tutelage.core.errors import TutelageError
from tutelage.deploy.bench import Bench, build_all, images_of
from tutelage.deploy.build import Say
from tutelage.evaluation.compare import evaluate
from tutelage.evaluation.table import Table
from tutelage.models.registry import load_model


def compare_deployed(
    specs: Sequence[str],
    *,
    data: str | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Table:
    """`evaluation.compare.compare`, each model also as ONNX, OpenVINO and int8 files, all on the CPU.

    Of data that has no parts of its own, a third is kept for the calibration of int8; without data it sees
    synthetic images.

    Args:
        specs: NAME@WEIGHTS each; the first is the one that the others are compared with.
        data: KIND:WHERE of labelled images; None: no quality.
        batch_size: of the throughput.
        threads: of the CPU; None: PyTorch's choice.
        device: ``cpu`` or None; the files are measured on the CPU only.
        say: called with a line before each step.

    Raises:
        TutelageError: a model, the data or the extra ``deploy`` is not there, or the device is not a CPU.
    """
    if device not in {None, "cpu"}:
        raise TutelageError("--deploy: deployed files are measured on the CPU; leave --device out")
    if threads:
        torch.set_num_threads(threads)
    material, subset = images_of(data)
    models = [load_model(spec) for spec in specs]
    with TemporaryDirectory() as directory:
        bench = Bench(build_all(models, Path(directory), material, say), subset, batch_size)
        table = evaluate(
            bench.models,
            bench.rows,
            subset,
            batch_size=batch_size,
            device="cpu",
            answer=bench.answer,
            say=say,
        )
        return bench.noted(bench.like_for_like(table), material)
