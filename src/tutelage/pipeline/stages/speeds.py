"""Speeds of the models of a run, measured with the batch of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutelage.core.errors import TutelageError
from tutelage.core.out_of_memory import batch_too_large, largest_that_fits, or_refuse
from tutelage.core.runtime import Precision
from tutelage.distillation.batch_memory import LEAST
from tutelage.models.precision import BOTH
from tutelage.models.source import Model
from tutelage.pipeline.stages.prepare import Prepared

Probe = Callable[..., dict[Precision, float]]


def measured(
    prepared: Prepared, probe: Probe, model: Model, name: str, precisions: Sequence[Precision] = BOTH
) -> dict[Precision, float]:
    """Measure images/s of one process in each precision.

    Args:
        prepared: has the device and the batch.
        probe: of `models.precision`.
        model: on any device.
        name: of what is measured, for an error.
        precisions: those to measure.

    Raises:
        TutelageError: memory runs out; the line names the batch that fits.
    """
    module, device, size = model.module.to(prepared.device), prepared.device, prepared.batch_per_process

    def rates(count: int) -> dict[Precision, float]:
        return probe(module, model.input_spec, count, device, precisions)

    def refuse(reason: str) -> TutelageError:
        processes = prepared.context.runtime.world_size
        fitting = processes * largest_that_fits(rates, size // 2, LEAST)
        return batch_too_large(f"{name} on {device}", processes * size, fitting, reason)

    return or_refuse(lambda: rates(size), refuse)
