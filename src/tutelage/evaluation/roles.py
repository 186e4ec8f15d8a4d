"""The roles that models play in a run. Files have them as plain strings."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a model is in the comparison of a run."""

    TEACHER = "teacher"
    START = "start"  # the student before training
    CONTROL = "control"  # the student trained with hard labels only
    DISTILLED = "distilled"  # the student that the run keeps
