"""The final evaluation: all models of a run on the same test images, and the diagnosis."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.files import entry, write_json
from tutelage.core.progress import shown
from tutelage.core.records import RunPredictions, TopClasses, write_predictions
from tutelage.core.run_dir import Run
from tutelage.data.input_spec import InputSpec
from tutelage.evaluation.calibration import calibrating_temperature
from tutelage.evaluation.fidelity import NO_LABELS, fidelity, unlabelled_verdict
from tutelage.evaluation.latency import forward_call
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.predict import in_common
from tutelage.evaluation.quality import quality, top1_and_nll
from tutelage.evaluation.roles import Role
from tutelage.evaluation.rows import COSTS, graded, likened, sized, timed, without
from tutelage.evaluation.table import Row, Table
from tutelage.evaluation.verdict import OPPONENTS, verdict
from tutelage.models.source import Model
from tutelage.pipeline.context import Context
from tutelage.pipeline.diagnose import Figures, diagnose
from tutelage.pipeline.memo import made_once
from tutelage.pipeline.stages.entries import ModelEntry, entries_of
from tutelage.pipeline.stages.evaluate import batches, labels_of, predict_entries, predict_jointly
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.train import Distilled

TOP = 5
THROUGHPUT_BATCH = 16
# on val, each of these is compared with those after it
ON_VAL = (Role.DISTILLED, Role.TEACHER, Role.CONTROL, Role.START, Role.PROBE)


def measure(checked: Checked, control: Model | None, distilled: Distilled) -> dict[str, Any]:
    """Evaluate all models on test, and write comparison.json and predictions.npz.

    Args:
        checked: the teachers and the starting student.
        control: the student trained with hard labels only; None where the run has none.
        distilled: the student that is kept.

    Returns:
        The content of comparison.json.
    """
    prepared = checked.prepared
    context, mapping, subset = prepared.context, prepared.class_mapping, prepared.splits.test
    entries, notes = entries_of(checked, control, distilled)
    rows = _timed_rows(entries, context)
    with shown(context.progress, "evaluation", batches(prepared, subset)):
        predictions = predict_entries(prepared, [one.models for one in entries], subset)
    logits = {one.role: found.logits for one, found in zip(entries, predictions, strict=True)}
    index = predictions[0].index
    labels = torch.from_numpy(subset.labels)[index]
    head_labels = mapping.labels(subset.labels[index.numpy()])
    kept = distilled.choice.kept.name
    if subset.labelled:
        classes = torch.from_numpy(mapping.index)
        rows = [graded(row, found, labels, classes) for row, found in zip(rows, logits.values(), strict=True)]
        found_verdict = verdict(_pairs(logits, head_labels), kept, prepared.recipe.random_start)
    else:
        close = {role: fidelity(found, logits[Role.TEACHER]) for role, found in logits.items()}
        rows = [likened(row, close[row.role], NO_LABELS) for row in rows]
        found_verdict = unlabelled_verdict(close, kept)
    rows = [replace(row, is_probe=one.is_probe) for row, one in zip(rows, entries, strict=True)]
    result = {
        "rows": Table(rows).records(),
        "notes": notes,
        "verdict": found_verdict,
        "test": {"source": subset.images.name, "split": subset.split, "n": len(index)},
        **_on_val(checked, entries, logits[Role.DISTILLED], head_labels),
    }
    if context.runtime.is_main:
        record = RunPredictions(
            np.array([subset.id(int(i)) for i in index]),
            head_labels,
            tuple(mapping.class_ids),
            {role: _top_classes(found) for role, found in logits.items()},
        )
        write_predictions(context.run.predictions, record)
        write_json(context.run.comparison, result)
    return result


def explain(run: Run) -> None:
    """Write diagnosis.json: findings from the run's figures, each with what to try."""
    findings = diagnose(Figures.of(run))
    write_json(run.diagnosis, {"findings": [finding.record() for finding in findings]})


def _pairs(logits: dict[str, Tensor], labels: np.ndarray) -> dict[str, Paired]:
    new = logits[Role.DISTILLED].numpy()
    return {role: paired(new, logits[role].numpy(), labels) for role in OPPONENTS if role in logits}


def _on_val(
    checked: Checked, entries: Sequence[ModelEntry], on_test: Tensor, test_labels: np.ndarray
) -> dict[str, Any]:
    """Compare the models on val too, where they were selected, and calibrate the student on it.

    Args:
        checked: the teachers and the starting student.
        entries: all models.
        on_test: the student's logits on test.
        test_labels: of these images, as classes of the head.

    Returns:
        `val`, empty where no image of val has a label; and `calibration`, where some have.
    """
    prepared, val = checked.prepared, checked.prepared.splits.val
    if not val.labelled:
        return {"val": {}}
    shown = [one for one in entries if one.role in ON_VAL]
    found = in_common(
        [
            checked.teacher_on_val if one.role == Role.TEACHER else predict_jointly(prepared, one.models, val)
            for one in shown
        ]
    )
    labels = labels_of(prepared, val, found[0])
    logits = {str(one.role): predictions.logits for one, predictions in zip(shown, found, strict=True)}
    pairs = combinations([str(role) for role in ON_VAL if role in logits], 2)
    record = {
        "n": int((labels >= 0).sum()),
        "top1": {role: top1_and_nll(one, labels)[0] for role, one in logits.items()},
        "pairs": [
            {"new": new, "old": old}
            | asdict(paired(logits[new].numpy(), logits[old].numpy(), labels.numpy()))
            for new, old in pairs
        ],
    }
    temperature = calibrating_temperature(logits[Role.DISTILLED], labels)
    return {"val": record, "calibration": _calibration(temperature, on_test, test_labels)}


def _calibration(temperature: float, on_test: Tensor, test_labels: np.ndarray) -> dict[str, Any]:
    """Record the student's temperature, and its calibration on test without and with it."""
    record: dict[str, Any] = {"temperature": temperature}
    labels = torch.from_numpy(test_labels)
    if (labels >= 0).any():
        for name, divisor in (("before", 1.0), ("after", temperature)):
            found = quality(on_test / divisor, labels)
            record[name] = {"nll": found.nll, "ece": found.ece}
    return record


def _top_classes(logits: Tensor) -> TopClasses:
    best = logits.softmax(1).topk(min(TOP, logits.shape[1]))
    return TopClasses(best.indices.numpy().astype(np.int32), best.values.numpy())


def _timed_rows(entries: Sequence[ModelEntry], context: Context) -> list[Row]:
    """Measure size and speed once for each architecture, since the students differ only in their weights.

    One process measures while the others wait, so that they take no time from it. Trials of a study, which differ only
    in their weights, use the first one's figures, so that chance does not affect them.
    """
    rows = [Row(_spec(one)) for one in entries]
    with made_once(context, context.run.speed, lambda: _speed_key(entries, context)) as found:
        if found:
            rows = [Row.from_dict(row) for row in entry(context.run.speed, "rows")]
        elif context.runtime.is_main:
            rows = _measured_rows(entries, context.runtime.device)
            write_json(context.run.speed, {"rows": Table(rows).records()})
    context.runtime.wait()
    return rows


def _speed_key(entries: Sequence[ModelEntry], context: Context) -> dict[str, Any]:
    return {
        "rows": [
            [one.role, model.spec, model.origin, model.input_spec.to_dict(), model.num_classes]
            for one in entries
            for model in one.models
        ],
        "machine": [context.runtime.device.type, torch.get_num_threads(), platform.node()],
    }


def _measured_rows(entries: Sequence[ModelEntry], device: torch.device) -> list[Row]:
    # start, control and kept student are copies of one network
    networks = {_network(model): model for one in entries for model in one.models if not model.looks_up}
    models = list(networks.values())
    rows = [
        sized(
            Row(model.spec, origin=model.origin),
            model.module,
            model.input_spec.height,
            model.input_spec.width,
        )
        for model in models
    ]
    singles, batches = (
        [
            forward_call(m.module.eval(), (size, 3, m.input_spec.height, m.input_spec.width), device)
            for m in models
        ]
        for size in (1, THROUGHPUT_BATCH)
    )
    rows = timed(
        rows, singles, batches, THROUGHPUT_BATCH, device=device.type, threads=torch.get_num_threads()
    )
    measured = dict(zip(networks, rows, strict=True))

    def row(model: Model) -> Row:
        return measured.get(_network(model)) or without(
            Row(model.spec, origin=model.origin), COSTS, "answers are stored"
        )

    return [replace(_summed([row(model) for model in one.models]), role=str(one.role)) for one in entries]


def _network(model: Model) -> tuple[str, str, InputSpec]:
    return model.spec, model.origin, model.input_spec


def _spec(one: ModelEntry) -> str:
    return " + ".join(model.spec for model in one.models)


def _summed(rows: Sequence[Row]) -> Row:
    """Combine the rows of networks that all process each image: sizes and times are summed."""
    if len(rows) == 1:
        return rows[0]

    def total(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else sum(values)

    added = ("size_mb", "params_m", "gmacs", "latency_ms", "latency_p10", "latency_p90")
    rates = [row.images_per_s for row in rows]
    figures: dict[str, Any] = {name: total(name) for name in added}
    return replace(
        rows[0],
        model=" + ".join(row.model for row in rows),
        origin=" + ".join(str(row.origin) for row in rows),
        images_per_s=1 / sum(1 / rate for rate in rates if rate) if all(rates) else None,
        **figures,
    )
