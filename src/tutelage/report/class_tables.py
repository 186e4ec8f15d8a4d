"""The tables of single classes and of single mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.core.records import RunPredictions
from tutelage.report.class_names import class_names
from tutelage.report.predictions import ClassFigures, Confusion
from tutelage.report.style import NAMES
from tutelage.report.tables import Cell, Sheet, number, signed

SHORT = {"distilled": "Student", "control": "Control", "teacher": "Teacher", "start": "Start"}


def each_class(found: Sequence[ClassFigures], names: Mapping[str, str], baseline: str) -> Sheet:
    """List recall, with its 95% interval, and precision of each class under each model, in percent.

    The last column is the change of the recall from the baseline to the distilled student, in points.
    """
    roles = _ordered(found)
    lines = [
        [
            _class(one.name, names),
            number(one.n, 0),
            *(_recall(one, role) for role in roles),
            Cell(
                signed(one.change(baseline), 1),
                one.change(baseline),
                "" if one.telling else "too few to tell",
            ),
            *(number(one.precision(role), 1) for role in roles),
        ]
        for one in found
    ]
    heads = ["Class", "Images"]
    heads += [f"{SHORT[role]}, recall %" for role in roles]
    heads += [f"Change, from {SHORT[baseline].lower()}"]
    heads += [f"{SHORT[role]}, precision %" for role in roles]
    return Sheet(heads, lines)


def over_classes(found: Sequence[ClassFigures], names: Mapping[str, str]) -> Sheet:
    """List for each model the means over classes of recall and precision in percent, and its weakest class."""
    lines = []
    for role in _ordered(found):
        precisions = [value for one in found if (value := one.precision(role)) is not None]
        weakest = min(found, key=lambda one: (one.recall(role), one.name))
        lines.append(
            [
                Cell(NAMES[role], role=role),
                number(sum(one.recall(role) for one in found) / len(found), 2),
                number(sum(precisions) / len(precisions) if precisions else None, 2),
                Cell(names[weakest.name], names[weakest.name]),
                _recall(weakest, role),
            ]
        )
    heads = [
        "Model",
        "Recall, mean of classes",
        "Precision, mean of classes",
        "Weakest class",
        "Its recall, %",
    ]
    strong = frozenset(place for place, role in enumerate(_ordered(found)) if role == "distilled")
    return Sheet(heads, lines, words=frozenset({3}), strong=strong)


def _ordered(found: Sequence[ClassFigures]) -> list[str]:
    """The roles in the order of the page's tables."""
    return [role for role in SHORT if found and role in found[0].right]


def _recall(one: ClassFigures, role: str) -> Cell:
    low, high = one.interval(role)
    return Cell(f"{one.recall(role):.1f}", one.recall(role), f"[{low:.0f}, {high:.0f}]")


def confusions(pairs: Sequence[Confusion], names: Mapping[str, str], baseline: str) -> Sheet:
    """List the most frequent mistakes and how often each model makes them."""
    shown = dict.fromkeys((baseline, "distilled", "teacher"))
    roles = [r for r in shown if pairs and r in pairs[0].counts]
    lines = [
        [
            _class(p.true, names),
            _class(p.called, names),
            number(p.n, 0),
            *(number(p.counts[role], 0) for role in roles),
        ]
        for p in pairs
    ]
    return Sheet(
        ["True class", "Predicted class", "Images", *(NAMES[r] for r in roles)], lines, words=frozenset({1})
    )


def mistakes(predictions: RunPredictions, positions: np.ndarray) -> Sheet:
    """List images that the distilled student classifies wrongly, by their positions."""
    names = class_names(predictions.classes)
    told = {role: NAMES[role] for role in ("control", "teacher") if role in predictions.roles}
    lines = []
    for position in positions.tolist():
        label, found = predictions.labels[position], predictions.roles["distilled"]
        called = {role: predictions.classes[predictions.roles[role].first[position]] for role in told}
        lines.append(
            [
                Cell(str(predictions.ids[position]), str(predictions.ids[position])),
                _class(predictions.classes[label], names),
                _class(predictions.classes[found.first[position]], names),
                number(100 * float(found.prob[position, 0]), 1),
                *(_class(name, names) for name in called.values()),
            ]
        )
    columns = ["Image", "True class", "Predicted class", "Confidence, %", *told.values()]
    return Sheet(columns, lines, words=frozenset({1, 2, *range(4, len(columns))}))


def _class(name: str, names: Mapping[str, str]) -> Cell:
    called = names[name]
    return Cell(called, called, name if called != name else "")
