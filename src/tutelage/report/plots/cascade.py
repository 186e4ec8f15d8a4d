"""Plots of a cascade of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tutelage.report.style import GREY, LINE, colour, figure, symbol

MARK = {"size": 11, "symbol": "diamond", "line": {"width": 1.5, "color": "#FFFFFF"}}


def cascade_curve(found: Mapping[str, Any]) -> go.Figure:
    """Plot the agreement with the teacher against the share of test images that the student answers alone."""
    points = [point for point in found["curve"] if point["agreement"] is not None]
    fig = figure(height=320)
    steps = [step for step in found["val"]["steps"] if step["error"] > 0 and step["answered"]]
    fig.add_trace(
        go.Scatter(
            x=[100 * step["answered"] / found["val"]["n"] for step in steps],
            y=[100 * step["bound"] for step in steps],
            customdata=[f"{step['threshold']:g}" for step in steps],
            mode="lines",
            name="lower bound on val",
            line={"color": GREY, "width": 1.5, "dash": "dot"},
            hovertemplate="threshold %{customdata}: at least %{y:.1f}%<extra></extra>",
        )
    )
    fig.add_trace(
        go.Scatter(
            x=[100 * point["coverage"] for point in points],
            y=[100 * point["agreement"] for point in points],
            customdata=[f"{point['threshold']:g}" for point in points],
            mode="lines",
            name="on test",
            line={"color": colour("distilled"), "width": 2},
            hovertemplate="threshold %{customdata}: alone on %{x:.1f}%, agreement %{y:.1f}%<extra></extra>",
        )
    )
    test = found["test"]
    if test["agreement"] is not None:
        fig.add_trace(
            go.Scatter(
                x=[100 * test["coverage"]],
                y=[100 * test["agreement"]],
                mode="markers",
                name=f"threshold {found['threshold']:g}",
                marker=MARK | {"color": colour("distilled")},
                hovertemplate="%{x:.1f}% alone, agreement %{y:.1f}%<extra></extra>",
            )
        )
    fig.add_hline(y=100 * found["agreement"], line={"color": LINE, "width": 1, "dash": "dash"})
    fig.update_xaxes(title="answered by the student alone, %", range=[0, 101])
    fig.update_yaxes(title="agreement with the teacher on these, %")
    return fig


def cascade_costs(found: Mapping[str, Any], cost: str, title: str) -> go.Figure:
    """Plot the cascade's top-1 on test against its average cost, from the student alone to the teacher alone.

    Args:
        found: the content of ``cascade.json``.
        cost: ``latency_ms`` or ``gmacs``.
        title: of the axis.
    """
    points: Sequence[Mapping[str, Any]] = found["curve"]
    fig = figure(height=320)
    fig.add_trace(
        go.Scatter(
            x=[point[cost] for point in points],
            y=[point["top1"] for point in points],
            customdata=[f"{point['threshold']:g}" for point in points],
            mode="lines",
            name="cascade",
            line={"color": colour("distilled"), "width": 2},
            hovertemplate="threshold %{customdata}: %{x:.3g}, top-1 %{y:.2f}%<extra></extra>",
        )
    )
    own = found["cost"][cost]
    for name, role, shown in (
        ("student", "distilled", "student alone"),
        ("teacher", "teacher", "teacher alone"),
    ):
        fig.add_trace(
            go.Scatter(
                x=[own[name]],
                y=[found["test"]["top1"][name]],
                mode="markers",
                name=shown,
                marker={"size": 10, "color": colour(role), "symbol": symbol(role)},
                hovertemplate=f"{shown}: %{{x:.3g}}, top-1 %{{y:.2f}}%<extra></extra>",
            )
        )
    fig.add_trace(
        go.Scatter(
            x=[own["cascade"]],
            y=[found["test"]["top1"]["cascade"]],
            mode="markers",
            name=f"threshold {found['threshold']:g}",
            marker=MARK | {"color": colour("distilled")},
            hovertemplate="%{x:.3g}, top-1 %{y:.2f}%<extra></extra>",
        )
    )
    fig.update_xaxes(title=title, rangemode="tozero")
    fig.update_yaxes(title="top-1 on test, %")
    return fig
