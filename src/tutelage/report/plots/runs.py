"""Plots that compare several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tutelage.report.plots.training import DASHES
from tutelage.report.style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    accuracy_key,
    accuracy_name,
    figure,
    text,
)

FEW = 5  # runs that have a colour each
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, GREY)


def val_curves(rows: Mapping[str, Sequence[Mapping[str, Any]]], best: str | None) -> go.Figure:
    """Plot the validation top-1 of the student by epoch in each run; without labels, its agreement with the teacher.

    Args:
        rows: of the stage ``distill``, by the run's name.
        best: the run drawn strongly where there are more than a few.
    """
    few = len(rows) <= FEW
    fig = figure(height=380, showlegend=few, hovermode="closest")
    order = sorted(rows, key=lambda name: name == best)  # the strong line is drawn last, above the others
    for place, name in enumerate(order):
        strong = few or name == best
        line = {
            "width": 2.5 if strong else 1.5,
            "color": COLOURS[place] if few else BLUE if strong else GREY,
            "dash": DASHES[place % 4] if few else "solid",
        }
        fig.add_trace(
            go.Scatter(
                x=[r["epoch"] for r in rows[name]],
                y=[r["val"][accuracy_key(r["val"])] for r in rows[name]],
                mode="lines+markers",
                marker={"size": 5},
                line=line,
                opacity=1 if strong else 0.6,
                name=text(name, 32),
                customdata=[text(name)] * len(rows[name]),
                hovertemplate="%{customdata}, epoch %{x}: %{y:.2f}%<extra></extra>",
            )
        )
    epochs = max(r["epoch"] for lines in rows.values() for r in lines)
    fig.update_xaxes(title="epoch", range=[0.7, epochs + 0.3], dtick=max(1, round(epochs / 8)), tick0=0)
    some = next(iter(rows.values()))[0]["val"]
    fig.update_yaxes(title=f"val {accuracy_name(some)}, %")
    return fig
