"""The table and the verdict: every model of a run on the same test images."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.checkpoint import State
from tutelage.context import Context
from tutelage.data.splits import Part
from tutelage.evaluate import Predictions, in_common, predict_logits
from tutelage.heads import Heads
from tutelage.measure.latency import forward_call
from tutelage.measure.paired import Paired, paired
from tutelage.measure.rows import graded, sized, timed
from tutelage.measure.table import Row, Table
from tutelage.models import Model
from tutelage.run import entry, write_bytes, write_json
from tutelage.sharing import made_once
from tutelage.verdict import verdict

TOP = 5
THROUGHPUT_BATCH = 16


@dataclass(frozen=True)
class Contestant:
    """A row of the table: who, with which weights."""

    role: str
    model: Model
    state: State


def prove(
    contestants: Sequence[Contestant],
    part: Part,
    heads: Heads,
    kept: str,
    context: Context,
) -> dict[str, Any]:
    """Measure all contestants on a part, and write comparison.json and predictions.npz.

    Args:
        contestants: the teacher first; `distilled` is held against the others.
        part: the test images.
        heads: how labels map to the heads.
        kept: name of the candidate that is `distilled`.
        context: of the run.
    """
    rows = _timed_rows(contestants, context)
    answers = in_common([_answer(one, part, context) for one in contestants])
    said = {one.role: answer.logits for one, answer in zip(contestants, answers, strict=True)}
    index = answers[0].index
    labels = torch.from_numpy(part.labels)[index]
    rows = [
        graded(row, answer.logits, labels, torch.from_numpy(heads.index))
        for row, answer in zip(rows, answers, strict=True)
    ]
    labels = torch.from_numpy(heads.labels(part.labels[index.numpy()]))
    pairs = _pairs(said, labels.numpy())
    result = {
        "rows": Table(rows).records(),
        "verdict": verdict(pairs, kept),
        "test": {"source": part.images.name, "split": part.split, "n": len(index)},
    }
    if context.writes:
        write_bytes(context.run.predictions, _predictions(said, part, labels, index, heads))
        write_json(context.run.comparison, result)
    return result


def _answer(one: Contestant, part: Part, context: Context) -> Predictions:
    one.model.module.load_state_dict(one.state)
    return predict_logits(
        one.model.module,
        one.model.input,
        part,
        context.accelerator,
        workers=context.workers,
        bad=context.bad,
    )


def _pairs(said: dict[str, Tensor], labels: np.ndarray) -> dict[str, Paired]:
    new = said["distilled"].numpy()
    return {
        role: paired(new, said[role].numpy(), labels)
        for role in ("start", "control", "teacher")
        if role in said
    }


def _timed_rows(contestants: Sequence[Contestant], context: Context) -> list[Row]:
    """Size and speed, measured once an architecture: the students differ in their weights only.

    One process measures, while the others wait and so take no time from it. Trials of a study, whose weights differ
    only, take the first one's figures, so that none is ranked by a lucky measurement.
    """
    rows = [Row(one.model.spec) for one in contestants]
    if context.writes:
        with made_once(context, context.run.speed, lambda: _speed_key(contestants, context)) as there:
            if there:
                rows = [Row.from_dict(row) for row in entry(context.run.speed, "rows")]
            else:
                rows = _measured_rows(contestants, context.accelerator.device)
                write_json(context.run.speed, {"rows": Table(rows).records()})
    context.accelerator.wait_for_everyone()
    return rows


def _speed_key(contestants: Sequence[Contestant], context: Context) -> dict[str, Any]:
    return {
        "rows": [
            [one.role, one.model.spec, one.model.origin, one.model.input.to_dict(), one.model.num_classes]
            for one in contestants
        ],
        "machine": [context.accelerator.device.type, torch.get_num_threads(), platform.node()],
    }


def _measured_rows(contestants: Sequence[Contestant], device: torch.device) -> list[Row]:
    models = list({id(one.model.module): one.model for one in contestants}.values())
    rows = [
        sized(Row(model.spec, origin=model.origin), model.module, model.input.height, model.input.width)
        for model in models
    ]
    singles, batches = (
        [forward_call(m.module.eval(), (size, 3, m.input.height, m.input.width), device) for m in models]
        for size in (1, THROUGHPUT_BATCH)
    )
    rows = timed(
        rows, singles, batches, THROUGHPUT_BATCH, device=device.type, threads=torch.get_num_threads()
    )
    of = {id(model.module): row for model, row in zip(models, rows, strict=True)}
    return [replace(of[id(one.model.module)], role=one.role) for one in contestants]


def _predictions(said: dict[str, Tensor], part: Part, labels: Tensor, index: Tensor, heads: Heads) -> bytes:
    """The five best classes and their probabilities of each model, as an .npz."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array([part.id(int(i)) for i in index]),
        "labels": labels.numpy(),
        "classes": np.array(heads.class_ids),
    }
    for role, logits in said.items():
        best = logits.softmax(1).topk(min(TOP, logits.shape[1]))
        arrays[f"{role}_top5"] = best.indices.numpy().astype(np.int32)
        arrays[f"{role}_prob5"] = best.values.numpy()
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    return stream.getvalue()
