"""Compare any models: size, speed, and quality on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tutelage.core.recipe import DataRecipe
from tutelage.core.runtime import Runtime, device_name
from tutelage.data.classes import map_classes
from tutelage.data.loading import BadImages, Loading
from tutelage.data.sources.base import open_for_evaluation
from tutelage.data.splits import Subset, whole
from tutelage.evaluation.class_order import name_classes
from tutelage.evaluation.latency import forward_call
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.predict import Predictions, predict_logits
from tutelage.evaluation.rows import QUALITY, graded, sized, timed, without
from tutelage.evaluation.table import Row, Table
from tutelage.models.registry import load_model
from tutelage.models.source import Model

COUNTED = "size is that of parameters and buffers, in MiB (2^20 bytes); MACs are counted by torch.utils.flop_counter"
Answer = Callable[[Model, BadImages], Predictions]
CHANGE = (
    "below each figure: its change against the first model, a factor (above 1x is better) or a difference"
)


def compare(
    models: Sequence[str | Model],
    *,
    data: str | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    device: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Table:
    """Measure models in turns, each with its own resolution, crop and normalisation.

    Args:
        models: NAME@WEIGHTS, KIND:WHERE or a `Model` each; the others are compared with the first.
        data: KIND:WHERE of labelled images; None: no quality.
        batch_size: of the throughput.
        threads: of the CPU; None: PyTorch's choice.
        device: ``cpu`` or ``cuda``; None: the best there is.
        say: receives a line before each step.

    Raises:
        TutelageError: a model, the data or the device cannot be found.
    """
    if threads:
        torch.set_num_threads(threads)
    subset = whole(open_for_evaluation(data)) if data else None
    made = [load_model(model) if isinstance(model, str) else model for model in models]
    runtime = Runtime.start(device)
    made, notes = with_classes(made, subset, runtime)
    table = evaluate(made, [sized_row(m) for m in made], subset, runtime, batch_size=batch_size, say=say)
    return Table(table.rows, [*table.notes, *notes])


def with_classes(
    models: Sequence[Model], subset: Subset | None, runtime: Runtime
) -> tuple[list[Model], list[str]]:
    """Name the classes of heads that name none, see `class_order.name_classes`; the models, and notes."""
    if subset is None:
        return list(models), []
    loading = Loading(bad=BadImages(DataRecipe().max_bad_images))
    found = [name_classes(model, subset, runtime, loading) for model in models]
    return [model for model, _ in found], [note for _, note in found if note]


def sized_row(model: Model) -> Row:
    """The row of a PyTorch model, with its size and MACs."""
    row = Row(model.spec, origin=model.origin)
    return sized(row, model.module, model.input_spec.height, model.input_spec.width)


def evaluate(
    models: Sequence[Model],
    rows: Sequence[Row],
    subset: Subset | None,
    runtime: Runtime,
    *,
    batch_size: int,
    answer: Answer | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Table:
    """Add speed, measured in turns, and quality to the rows of models.

    Args:
        models: to be measured.
        rows: of the same, with their sizes.
        subset: labelled images; None: no quality.
        runtime: has the device.
        batch_size: of the throughput.
        answer: gives a model's logits on the part; None: `predict_logits` does.
        say: receives a line before each step.
    """
    say("timing the models in turns")
    rows = _timed(rows, models, batch_size, runtime.device)

    def predicted(model: Model, bad: BadImages) -> Predictions:
        assert subset is not None  # else nothing is asked
        return predict_logits(model.module, model.input_spec, subset, runtime, Loading(bad=bad))

    rows, notes = _graded(rows, models, subset, answer or predicted, say)
    return Table(rows, [CHANGE, COUNTED, _speed_note(rows[0]), *notes])


def _timed(rows: Sequence[Row], models: Sequence[Model], batch_size: int, device: torch.device) -> list[Row]:
    for model in models:
        model.module.to(device)
    singles, batches = (
        [forward_call(m.module, (size, 3, m.input_spec.height, m.input_spec.width), device) for m in models]
        for size in (1, batch_size)
    )
    return timed(
        rows, singles, batches, batch_size, device=device_name(device), threads=torch.get_num_threads()
    )


def _speed_note(row: Row) -> str:
    measured = row.conditions
    return (
        f"speed on {measured['device']} with {measured['threads']} threads, models in turns: latency of one "
        f"image, median of {measured['rounds']} calls; images/s in batches of {measured['batch_size']}, "
        f"median of {measured['batch_rounds']} calls"
    )


# --- quality


@dataclass(frozen=True)
class _Answers:
    """Labels and a model's predictions, in class numbers that all models share."""

    labels: np.ndarray
    classes: np.ndarray


def _graded(
    rows: Sequence[Row],
    models: Sequence[Model],
    subset: Subset | None,
    answer: Answer,
    say: Callable[[str], object],
) -> tuple[list[Row], list[str]]:
    """Rows with quality or the reason of its absence, and notes."""
    notes: list[str] = []
    done: list[Row] = []
    numbers: dict[str, int] = {}
    bad = BadImages(DataRecipe().max_bad_images)
    first: _Answers | None = None
    for row, model in zip(rows, models, strict=True):
        index, remark = _head_index(model, subset)
        if subset is None or index is None:
            done.append(without(row, QUALITY, remark))
            continue
        notes += [remark] if remark else []
        say(f"{model.spec}: {len(subset):,} images at {model.input_spec.height} px")
        row, answers = _grade(row, model, subset, index, answer(model, bad), numbers)
        if len(done) == 0:
            first = answers
        elif first is not None:
            row = replace(row, paired=paired(answers.classes, first.classes, answers.labels))
        done.append(row)
    return done, [*notes, *_quality_notes(done, subset)]


def _head_index(model: Model, subset: Subset | None) -> tuple[np.ndarray | None, str]:
    """Where the data's classes lie in the head, and a remark; None, and why there is no quality."""
    if not model.pretrained:
        return None, "the weights are random (@none)"
    if subset is None:
        return None, "no images were given; add labelled images with --data KIND:WHERE"
    if not (subset.labels >= 0).any():
        return None, f"the images of {subset.images.name} have no labels"
    size = len(subset.classes)
    if model.class_ids is None and model.num_classes == size:
        return np.arange(
            size
        ), f"{model.spec} does not name its classes; they are assumed to be in the data's sorted order"
    known = model.class_ids or (model.presumed[0] if model.presumed else None)
    if known is None:
        return None, f"the head has {model.num_classes} unnamed classes, {subset.images.name} has {size}"
    index = map_classes(subset.classes, model.class_ids)
    if index is not None:
        return index, ""
    foreign = next((name for name in subset.classes if name not in known), "")
    return None, (
        f"the head's {model.num_classes} classes are not those of {subset.images.name} (such as {foreign!r}); "
        "distil it or fit it to this data first"
    )


def _grade(
    row: Row,
    model: Model,
    subset: Subset,
    index: np.ndarray,
    predictions: Predictions,
    numbers: dict[str, int],
) -> tuple[Row, _Answers]:
    labels = torch.from_numpy(subset.labels)[predictions.index]
    row = graded(row, predictions.logits, labels, torch.from_numpy(index))
    row = replace(row, conditions={**row.conditions, "data": subset.images.name})
    ids = _shared_numbers(model, subset, index, numbers)
    return row, _Answers(_map(labels, ids[index]), ids[predictions.logits.argmax(1).numpy()])


def _shared_numbers(model: Model, subset: Subset, index: np.ndarray, numbers: dict[str, int]) -> np.ndarray:
    """A number for each class of the head, the same in all models that name it alike."""
    names = list(model.class_ids or ())
    if not names:
        names = [""] * model.num_classes
        for name, place in zip(subset.classes, index, strict=True):
            names[place] = name
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _map(labels: Tensor, numbers: np.ndarray) -> np.ndarray:
    given = labels.numpy()
    return np.where(given >= 0, numbers[given], -1)


def _quality_notes(rows: Sequence[Row], subset: Subset | None) -> list[str]:
    measured = next((row for row in rows if row.n), None)
    if subset is None or measured is None:
        return []
    notes = [
        f"quality on {measured.n:,} images of {subset.images.name}, each model at its own resolution and crop"
    ]
    missed = len(subset) - (measured.n or 0)
    if missed:
        notes.append(
            f"{missed:,} of its {len(subset):,} images have no label or cannot be decoded, and are left out"
        )
    return [*notes, *(_paired_note(row.name, row.paired) for row in rows if row.paired)]


def _paired_note(name: str, pair: Paired) -> str:
    return (
        f"{name}: {pair.corrections} corrections, {pair.negative_flips} negative flips, McNemar "
        f"p = {pair.mcnemar_p:.3g}; the 95% interval is the paired bootstrap's"
    )
