"""Plots of the models' predictions for the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from tutelage.report.predictions import BINS, Agreement, ClassFigures, Reliability, wilson
from tutelage.report.style import BLUE, LINE, NAMES, VERMILION, colour, figure, text

SHARES = {
    "both_right": ("both correct", "#3FB595"),
    "both_wrong_same": ("both wrong, same class", "#A9DCC9"),
    "only_model_right": ("only this model correct", "#6AAED6"),
    "only_teacher_right": ("only the teacher correct", "#E8955A"),
    "both_wrong_apart": ("both wrong, other classes", "#B4B9BF"),
}
MATRIX_SIDE, CELL_SIDE = 570, 30  # pixels, at most
COUNTED = 12  # classes, at most, whose cells have their counts written into them
BLUES = [[0, "rgba(0,114,178,0.04)"], [1, "rgba(0,114,178,1)"]]  # of mistakes
GREYS = [[0, "rgba(128,128,128,0.05)"], [1, "rgba(128,128,128,0.35)"]]  # of correct predictions


def agreement(parts: Sequence[Agreement]) -> go.Figure:
    """Plot on which shares of the test images each model and the teacher agree and are correct."""
    fig = figure(height=150 + 40 * len(parts), barmode="stack", bargap=0.35)
    fig.update_layout(margin={"r": 20})  # room for half of the last tick's label
    names = [NAMES[p.role] for p in parts]
    for key, (label, fill) in SHARES.items():
        values = [getattr(p, key) for p in parts]
        fig.add_trace(
            go.Bar(
                x=values,
                y=names,
                orientation="h",
                name=label,
                marker={"color": fill},
                text=[f"{v:.0f}" if v >= 5 else "" for v in values],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "#111111"},
                hovertemplate=f"{label}: %{{x:.1f}}%<extra></extra>",
            )
        )
    fig.update_xaxes(title="share of the test images, %", range=[0, 100], tickvals=[0, 25, 50, 75, 100])
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_layout(legend={"traceorder": "normal"})
    return fig


def reliability(found: Reliability) -> go.Figure:
    """Plot accuracy against confidence of one model, and below it the number of images in each bin.

    The interval of an accuracy is Wilson's of 95%.
    """
    fig = figure(height=330, showlegend=False, bargap=0.15)
    diagonal = {"color": LINE, "width": 1, "dash": "dot"}
    fig.add_trace(go.Scatter(x=[0, 100], y=[0, 100], mode="lines", line=diagonal, hoverinfo="skip"))
    rights = found.accuracy * found.count / 100
    bounds = [wilson(right, n) for right, n in zip(rights.tolist(), found.count.tolist(), strict=True)]
    fig.add_trace(
        go.Scatter(
            x=found.confidence.round(2).tolist(),
            y=found.accuracy.round(2).tolist(),
            customdata=found.count.tolist(),
            mode="markers",
            marker={"size": 6, "color": colour(found.role)},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [
                    round(high - y, 2) for (_, high), y in zip(bounds, found.accuracy.tolist(), strict=True)
                ],
                "arrayminus": [
                    round(y - low, 2) for (low, _), y in zip(bounds, found.accuracy.tolist(), strict=True)
                ],
                "color": colour(found.role),
                "thickness": 1.5,
                "width": 0,
            },
            hovertemplate="confidence %{x:.0f}%, accuracy %{y:.0f}%, %{customdata} images<extra></extra>",
        )
    )
    middles = [100 * (bin + 0.5) / BINS for bin in range(BINS)]
    fig.add_trace(
        go.Bar(
            x=middles,
            y=found.images.tolist(),
            yaxis="y2",
            marker={"color": colour(found.role), "opacity": 0.55},
            text=[f"{n:,}" if n else "" for n in found.images.tolist()],
            textposition="outside",
            textangle=-90,
            textfont={"size": 10},
            constraintext="none",
            cliponaxis=False,
            hovertemplate="%{y:,} images<extra></extra>",
        )
    )
    most = float(found.images.max(initial=1))
    fig.update_xaxes(
        title="confidence, %", range=[0, 102], showgrid=True, tickvals=[0, 25, 50, 75, 100], anchor="y2"
    )
    fig.update_yaxes(title="accuracy, %", range=[0, 103], domain=[0.36, 1], tickvals=[0, 25, 50, 75, 100])
    images = {"title": "images", "range": [0, 1.9 * most], "domain": [0, 0.26], "showticklabels": False}
    fig.update_layout(yaxis2=images | {"showgrid": False, "anchor": "x"})
    return fig


def class_changes(
    found: Sequence[ClassFigures], baseline: str, names: Mapping[str, str], limit: int = 12
) -> go.Figure:
    """Plot the classes whose recall gained and lost the most (points), greatest gain above.

    Args:
        found: in any order.
        baseline: the role that the distilled student is compared with.
        names: what a class is called on the page.
        limit: so many of each end.
    """
    order = sorted(found, key=lambda one: (-one.change(baseline), one.name))
    shown = [one for one in order if one.change(baseline) > 0][:limit]
    shown += [one for one in order if one.change(baseline) < 0][-limit:]
    fig = figure(height=80 + 22 * len(shown), margin={"l": 8, "r": 16, "t": 8, "b": 8}, bargap=0.3)
    fig.add_trace(
        go.Bar(
            x=[round(one.change(baseline), 3) for one in shown],
            y=list(range(len(shown))),
            orientation="h",
            marker={"color": [BLUE if one.change(baseline) > 0 else VERMILION for one in shown]},
            customdata=[
                [text(names[one.name]), one.recall(baseline), one.recall("distilled"), one.n] for one in shown
            ],
            hovertemplate="%{customdata[0]}: %{customdata[1]:.0f}% to %{customdata[2]:.0f}%"
            " of %{customdata[3]} images (%{x:+.1f})<extra></extra>",
        )
    )
    fig.add_vline(x=0, line={"color": LINE, "width": 1})
    ticks = [text(names[one.name], 22) for one in shown]
    fig.update_yaxes(tickvals=list(range(len(shown))), ticktext=ticks, autorange="reversed", showgrid=False)
    fig.update_xaxes(title="change in recall, points", showgrid=True)
    return fig


def confusion(matrix: np.ndarray, images: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Plot counts (C, C) with a row for each label and a column for each prediction; `images` (C,) has each label.

    The colour of a cell is its share of the true class, in percent. Correct predictions are grey, so that they do not
    outshine the mistakes. Where there are few classes, the counts are written into the cells.
    """
    size = len(names)
    percent = 100 * matrix / np.maximum(images, 1)[:, None]
    right = np.eye(size, dtype=bool)
    full = [text(n) for n in names]
    side = min(MATRIX_SIDE, CELL_SIDE * size)
    fig = figure(
        height=side + 120,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        meta={"max_width": side + 210, "min_width": min(side + 210, 560)},
    )
    most = float(np.where(right, 0, percent).max(initial=0)) or 1.0
    bar = {
        "title": {"text": "% of the<br>true class", "font": {"size": 12}},
        "thickness": 10,
        "outlinewidth": 0,
    }
    cells = [
        [f"{a}, predicted as {b}: {matrix[i, j]} images, {percent[i, j]:.1f}%" for j, b in enumerate(full)]
        for i, a in enumerate(full)
    ]
    for shown, colours, bars in ((right, GREYS, {"showscale": False}), (~right, BLUES, {"colorbar": bar})):
        fig.add_trace(
            go.Heatmap(
                z=np.where(shown, percent, np.nan),
                text=np.where(shown & (matrix > 0), matrix.astype(str), ""),
                texttemplate="%{text}" if size <= COUNTED else None,
                customdata=cells,
                colorscale=colours,
                zmin=0,
                zmax=100 if shown is right else most,
                xgap=1,
                ygap=1,
                hoverongaps=False,
                hovertemplate="%{customdata}<extra></extra>",
                **bars,
            )
        )
    ticks = {"tickvals": list(range(size)), "ticktext": [text(n, 16) for n in names], "showgrid": False}
    fig.update_xaxes(**ticks, tickangle=-60, title="predicted class", showline=False)
    fig.update_yaxes(**ticks, autorange="reversed", title="true class")
    return fig
