"""A whole run that is small enough for a test."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, Any] = {
    "teacher.resolution": 32,
    "teacher.fit": {"epochs": 1, "lr": 3e-3},
    "student.resolution": 32,
    "data.limit": 240,
    "data.workers": 0,
    "train.batch_size": 32,
    "train.precision": "fp32",
    "preflight.allow_weak_teacher": True,
}
