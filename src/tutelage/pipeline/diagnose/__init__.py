"""Diagnosis of a run: findings, each with its evidence and the recipe keys to try."""

from tutelage.pipeline.diagnose.diagnosis import diagnose
from tutelage.pipeline.diagnose.figures import Figures, Finding, Severity, Try, lines

__all__ = ["Figures", "Finding", "Severity", "Try", "diagnose", "lines"]
