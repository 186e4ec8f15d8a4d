"""How long a run that is going on still takes, from what its pre-flight has measured and from its epochs."""

from __future__ import annotations

from typing import Any

from tutelage.report.run_records import STAGES, RunRecords
from tutelage.report.tables import duration

NOT_COUNTED = "latencies, deployed files and the page are not counted"


def time_left(records: RunRecords) -> str:
    """Write what is left of a run in a sentence; empty where that is not known, or nothing is left.

    Before the pre-flight, only the fit that is going on can be estimated.
    """
    if records.finished or records.stopped:
        return ""
    planned = (records.preflight or {}).get("seconds")
    if planned:
        seconds = sum(_training_left(records, planned))
        seconds += planned["selection"] if records.candidates is None else 0.0
        seconds += planned["test"] if records.comparison is None else 0.0
        return f"About {_about(seconds)} of computing are left ({NOT_COUNTED})." if seconds else ""
    for stage in ("teacher-fit", "head-fit"):
        rows = records.stage(stage)
        if rows and rows[-1]["epoch"] < (rows[-1].get("epochs") or 0):
            seconds = (rows[-1]["epochs"] - rows[-1]["epoch"]) * _mean(rows)
            return f"About {_about(seconds)} are left of {STAGES[stage]}. After it, the rest is estimated."
    return ""


def _about(seconds: float) -> str:
    return duration(seconds) if seconds > 59 else f"{max(1, round(seconds))} s"


def _training_left(records: RunRecords, planned: dict[str, Any]) -> list[float]:
    """Seconds that control and student still train: as measured in their epochs so far, else as planned."""
    if records.candidates is not None:
        return [0.0]
    stages = ["control", "distill"] if records.recipe.get("control", True) else ["distill"]
    epochs = _epochs(records)
    if epochs is None:
        return [planned["training"]]
    found = []
    for stage in stages:
        rows = records.stage(stage)
        each = _mean(rows) + _validation(records) if rows else planned["training"] / (len(stages) * epochs)
        found.append((epochs - len(rows)) * each)
    return found


def _epochs(records: RunRecords) -> int | None:
    """Epochs of control and student; None where neither the recipe nor a record has them."""
    rows = records.stage("control") + records.stage("distill")
    chosen = (records.choices.get("train.epochs") or {}).get("value")
    stated = (records.recipe.get("train") or {}).get("epochs")
    known = [rows[0].get("epochs") if rows else None, chosen, stated]
    return next((value for value in known if isinstance(value, int)), None)


def _validation(records: RunRecords) -> float:
    """Seconds in which a student and its EMA are evaluated on val after an epoch."""
    preflight = records.preflight or {}
    images = (preflight.get("val") or {}).get("n") or 0
    rates = ((preflight.get("precision") or {}).get("images_per_s") or {}).get("student_inference") or {}
    models = 2 if (records.recipe.get("train") or {}).get("ema") else 1
    return float(models * images / max(rates.values())) if rates else 0.0


def _mean(rows: list[dict[str, Any]]) -> float:
    return sum(row.get("seconds") or 0.0 for row in rows) / len(rows)
