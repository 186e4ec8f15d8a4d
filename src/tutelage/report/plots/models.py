"""Plots that compare models: paired differences and trade-offs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tutelage.report.style import CLEAR, LINE, colour, figure, role_name, symbol, text

Row = Mapping[str, Any]

COSTS = {"latency_ms": ("latency", "ms"), "size_mb": ("size", "MiB")}
LOG_FROM = 3.0  # times the smallest cost
MOST_LABELS, LONGEST_LABEL = 10, 28  # and its characters
MOST_TICKS = 6  # side by side on a phone
PLOT_HEIGHT, PLOT_WIDTH = 320, 290  # pixels between the axes of the trade-off on a phone
LETTER_WIDTH = 6.4  # pixels, of its labels
# Times the next largest extent: an interval that is drawn on an eighth of the width can just be read.
FLATTENED = 8.0
MARK = 8  # pixels of a difference's mark
CAP = 8  # pixels of each half of the ends of its whiskers, which stand out behind the mark


def intervals(pairs: Sequence[Row], names: Sequence[str] | None = None) -> go.Figure:
    """Plot each paired difference in top-1 (points) with its 95% interval.

    A difference that is so much larger than all others that it would flatten them is written beside an arrow at the
    edge.

    Args:
        pairs: of a verdict.
        names: what stands beside each; None: against whom it is.
    """
    names = names or [f"against the {role_name(p['old']).lower()}" for p in pairs]
    apart = beyond(pairs)
    on_scale = [pair for place, pair in enumerate(pairs) if place not in apart]
    low, high = _padded([0.0, *(pair[end] for pair in on_scale for end in ("low", "high"))], 0.06)
    fig = figure(height=64 + 40 * len(pairs), margin={"l": 8, "r": 16, "t": 4, "b": 8})
    for place, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        fig.add_trace(
            _arrow(pair, name, place, low, high) if place in apart else _interval(pair, name, place)
        )
    fig.add_vline(x=0, line={"color": LINE, "width": 1})
    ticks = {"tickvals": list(range(len(pairs))), "ticktext": [text(n, 32) for n in names]}
    fig.update_yaxes(**ticks, range=[len(pairs) - 0.4, -0.6], showgrid=False)
    fig.update_xaxes(title="difference in top-1, points", showgrid=True, range=[low, high])
    return fig


def beyond(pairs: Sequence[Row]) -> set[int]:
    """Find the positions of the differences that would flatten all others on a common scale."""
    extents = sorted((max(abs(pair["low"]), abs(pair["high"])), place) for place, pair in enumerate(pairs))
    found: set[int] = set()
    while len(extents) > 1 and extents[-1][0] > FLATTENED * extents[-2][0] > 0:
        found.add(extents.pop()[1])
    return found


def _interval(pair: Row, name: str, place: int) -> go.Scatter:
    difference, low, high = pair["difference"], pair["low"], pair["high"]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [high - difference],
        "arrayminus": [difference - low],
        "thickness": 2,
        "width": CAP,
        "color": colour(pair["old"]),
    }
    return go.Scatter(
        x=[difference],
        y=[place],
        customdata=[[text(name), low, high]],
        error_x=error,
        mode="markers",
        marker={"size": MARK, "color": colour(pair["old"]), "symbol": symbol(pair["old"])},
        hovertemplate="%{customdata[0]}: %{x:+.2f} points<br>"
        "95% interval %{customdata[1]:+.2f} to %{customdata[2]:+.2f}<extra></extra>",
        showlegend=False,
    )


def _arrow(pair: Row, name: str, place: int, low: float, high: float) -> go.Scatter:
    """Draw a difference off the scale, which is from `low` to `high`."""
    up = pair["difference"] > 0
    words = f"{pair['difference']:+.2f} ({pair['low']:+.2f} to {pair['high']:+.2f})".replace("-", "\u2212")
    return go.Scatter(
        x=[high if up else low],
        y=[place],
        mode="markers+text",
        text=[words.partition(" ")[0]],  # on a phone, there is no room for the interval
        textposition="middle left" if up else "middle right",
        marker={
            "size": 11,
            "color": colour(pair["old"]),
            "symbol": "triangle-right" if up else "triangle-left",
        },
        cliponaxis=False,
        hovertemplate=f"{text(name)}: {words} points, beyond the scale<extra></extra>",
        showlegend=False,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the positions of the (cost, merit) points on the Pareto front, cheapest first."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def tradeoff(
    rows: Sequence[Row], cost: str = "latency_ms", names: Sequence[str] | None = None
) -> go.Figure | None:
    """Plot top-1 against a cost of each model and file, with the Pareto front.

    Args:
        rows: of the comparison table.
        cost: ``latency_ms`` or ``size_mb``.
        names: of the rows; None: their roles. More than `MOST_LABELS` are shown under the pointer only.

    Returns:
        None when fewer than two rows have both figures.
    """
    called = names or [role_name(r["role"]).removeprefix("Deployed: ") for r in rows]
    known = [(r, n) for r, n in zip(rows, called, strict=True) if r.get(cost) and r.get("top1") is not None]
    if len(known) < 2:
        return None
    points = [(float(r[cost]), float(r["top1"])) for r, _ in known]
    axis, (low, high) = _cost_axis([x for x, _ in points]), _padded([y for _, y in points], 0.12)
    what, unit = COSTS[cost]
    fig = figure(height=PLOT_HEIGHT + 60, showlegend=False)
    fig.add_trace(_front(points, low, axis))
    fig.add_traces([_model_point(*entry, point, cost) for entry, point in zip(known, points, strict=True)])
    fig.update_xaxes(title=f"{what}, {unit}", **axis)
    fig.update_yaxes(title="top-1, %", range=(low, high), nticks=7)
    left, right = axis["range"]
    shares = [((math.log10(x) if "type" in axis else x) - left) / (right - left) for x, _ in points]
    places = [
        (PLOT_WIDTH * s, PLOT_HEIGHT * (high - y) / (high - low))
        for s, (_, y) in zip(shares, points, strict=True)
    ]
    if len(known) <= MOST_LABELS:
        _label(fig, [name for _, name in known], places)
    return fig


def _front(points: Sequence[tuple[float, float]], low: float, axis: Mapping[str, Any]) -> go.Scatter:
    """Draw a staircase: the top-1 of the best model that costs no more than that."""
    front = [points[i] for i in pareto(points)]
    end = axis["range"][1]
    xs, ys = [x for x, _ in front], [y for _, y in front]
    return go.Scatter(
        x=[xs[0], *xs, 10**end if "type" in axis else end],
        y=[low, *ys, ys[-1]],
        mode="lines",
        line={"color": LINE, "width": 1.5, "shape": "hv", "dash": "dot"},
        hoverinfo="skip",
        name="Pareto front",
    )


def _model_point(row: Row, name: str, point: tuple[float, float], cost: str) -> go.Scatter:
    what, unit = COSTS[cost]
    return go.Scatter(
        x=[point[0]],
        y=[point[1]],
        mode="markers",
        marker={"size": 13, "color": colour(row["role"]), "symbol": symbol(row["role"])},
        customdata=[text(name)],
        hovertemplate=f"<b>%{{customdata}}</b><br>top-1 %{{y:.2f}}%<br>{what} %{{x:.4g}} {unit}<extra></extra>",
        name=text(name),
    )


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = share * ((high - low) or 1)
    return low - pad, high + pad


def _cost_axis(costs: Sequence[float]) -> dict[str, Any]:
    """Make an axis that is logarithmic where the costs are far apart, with ticks at round numbers."""
    if max(costs) < LOG_FROM * min(costs):
        return {"range": _padded(costs, 0.25), "nticks": 6}
    left, right = _padded([math.log10(cost) for cost in costs], 0.2)
    multiples = next((m for m in ((1, 2, 5), (1, 3)) if len(_ticks(left, right, m)) <= MOST_TICKS), (1,))
    ticks = _ticks(left, right, multiples)
    return {"type": "log", "range": (left, right), "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}


def _ticks(left: float, right: float, multiples: Sequence[int]) -> list[float]:
    decades = range(math.floor(left), math.ceil(right) + 1)
    return [m * 10.0**d for d in decades for m in multiples if left <= d + math.log10(m) <= right]


def _label(fig: go.Figure, names: Sequence[str], places: Sequence[tuple[float, float]]) -> None:
    """Write a name beside each point, where it covers neither another name nor a point.

    Args:
        fig: its first trace is the front, the others are the points in the order of `names`.
        names: of the points.
        places: pixels across and down of each point, on the narrowest screen; wider ones have more room.
    """
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    for (x, y), name, trace in zip(places, names, fig.data[1:], strict=True):
        width = LETTER_WIDTH * min(len(name), LONGEST_LABEL)
        options = [(side, down) for down in (0, 17, -17, 34, -34, 51, -51, 68, -68) for side in (1, -1)]
        boxes = {option: _label_box(x, y, width, *option) for option in options}
        free = [
            o
            for o, b in boxes.items()
            if b[0] >= 0
            and b[2] <= PLOT_WIDTH
            and b[1] >= 0
            and b[3] <= PLOT_HEIGHT
            and not any(_meet(b, t) for t in taken)
        ]
        side, down = free[0] if free else (1, 0)
        taken.append(boxes[side, down])
        fig.add_annotation(
            x=math.log10(trace.x[0]) if fig.layout.xaxis.type == "log" else trace.x[0],
            y=trace.y[0],
            text=text(name, LONGEST_LABEL),
            ax=16 * side,
            ay=down,
            xanchor="left" if side > 0 else "right",
            arrowwidth=1,
            arrowcolor=LINE if down else CLEAR,
            arrowhead=0,
            standoff=7,
            font={"size": 12},
        )


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _label_box(x: float, y: float, width: float, side: int, down: int) -> Box:
    left = x + 16 if side > 0 else x - 16 - width
    return (left, y + down - 8, left + width, y + down + 8)


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
