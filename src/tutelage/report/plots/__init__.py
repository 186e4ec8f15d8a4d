"""The figures of a report. Each takes plain figures and returns a Plotly figure, so notebooks can show it.

Colour says which model, line style or mark says which quantity (see `tutelage.report.style`).
"""

from tutelage.report.plots.answers import COUNTED, agreement, class_changes, confusion, reliability
from tutelage.report.plots.cascade import cascade_costs, cascade_curve
from tutelage.report.plots.models import beyond, intervals, pareto, tradeoff
from tutelage.report.plots.runs import FEW, val_curves
from tutelage.report.plots.training import candidates, curves

__all__ = [
    "COUNTED",
    "FEW",
    "agreement",
    "beyond",
    "candidates",
    "cascade_costs",
    "cascade_curve",
    "class_changes",
    "confusion",
    "curves",
    "intervals",
    "pareto",
    "reliability",
    "tradeoff",
    "val_curves",
]
