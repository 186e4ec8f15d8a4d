"""The roles that models play in a run. Files have them as plain strings."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a model is in the comparison of a run."""

    TEACHER = "teacher"
    START = "start"  # the student before training
    CONTROL = "control"  # the student trained with hard labels only
    PROBE = "probe"  # the student with a linear probe as its head, where the start is another one
    TEACHER_PROBE = "teacher-probe"  # the same of the teacher, where the student has no pretrained features
    DISTILLED = "distilled"  # the student that the run keeps


NAMES = {  # of the roles that are not named by their own words in tables and sentences
    Role.PROBE: "linear probe",
    Role.TEACHER_PROBE: "probe of the teacher's features",
}
