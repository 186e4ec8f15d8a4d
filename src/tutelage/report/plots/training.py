"""Plots of training by epoch and of the candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tutelage.report.style import (
    BLUE,
    PURPLE,
    accuracy_key,
    accuracy_name,
    colour,
    figure,
    loss_name,
    text,
)

Row = Mapping[str, Any]
Stages = Mapping[str, Sequence[Row]]

SHORT = {"start": "start", "control": "labels only"}
RANKS = {"distilled": 1, "control": 2, "teacher": 3, "start": 4}  # in the legend
FIRST, LAST = (
    ("total", "kd", "kl"),
    ("cross_entropy", "label", "l2_sp"),
)  # loss terms; the others are between them
NO_TERMS = {
    "top1",
    "nll",
    "ece",
    "agreement",
    "fidelity",
    "loss",
}  # other figures that a row has of the validation images
METRICS = {
    "top1": "val top-1, %",
    "nll": "val NLL, nats",
    "fidelity": "val KL from the teacher, nats",
}
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross")


def curves(
    rows: Sequence[Row],
    findings: Sequence[Row] = (),
    kept: Row | None = None,
    references: Mapping[str, float] | None = None,
) -> dict[str, go.Figure]:
    """Plot the curves of training: ``accuracy``, one ``loss: TERM`` for each term, ``lr`` and ``speed``.

    Args:
        rows: of ``metrics.jsonl``, of the stages to draw together.
        findings: of the diagnosis; those with an epoch are marked by their number where they happen.
        kept: the kept candidate, with its ``epoch`` and its ``val`` figures.
        references: val top-1 (percent) of the roles that do not train here, drawn as level lines; the
            student's curves begin at that of the ``start``.
    """
    stages = {s: [r for r in rows if r["stage"] == s] for s in dict.fromkeys(r["stage"] for r in rows)}
    found = {t for r in rows for t, v in r["loss"].items() if v is not None}
    middle = sorted(found - {*FIRST, *LAST})
    terms = [term for term in (*FIRST, *middle, *LAST) if term in found]
    levels = references or {}
    figures = {"accuracy": _accuracy(stages, levels)}
    figures |= {f"loss: {term}": _loss(stages, term) for term in terms}
    figures["lr"] = _single(stages, "lr", "learning rate", ".3g")
    figures["speed"] = _single(stages, "images_per_s", "training images/s", ".0f")
    epochs = max(r["epoch"] for r in rows)
    here = {n: f for n, f in enumerate(findings, start=1) if f.get("stage") in stages and f.get("epoch")}
    for name, fig in figures.items():
        first = 0 if name == "accuracy" and "start" in levels else 1
        fig.update_xaxes(
            title="epoch", range=[first - 0.3, epochs + 0.3], dtick=max(1, round(epochs / 8)), tick0=0
        )
        fig.update_layout(hovermode="x unified")
        if name == "accuracy" or name.startswith("loss"):
            _mark_kept(fig, kept, starred=name == "accuracy")
            _mark_findings(fig, here)
    return figures


def role_of(stage: str) -> str:
    """Give the role that a stage trains: ``teacher-fit-2`` trains a teacher, ``head-fit`` the start."""
    return {"distill": "distilled", "control": "control", "head-fit": "start"}.get(stage, "teacher")


def _accuracy(stages: Stages, levels: Mapping[str, float]) -> go.Figure:
    fig = figure(height=380)
    epochs = max(r["epoch"] for rows in stages.values() for r in rows)
    some = next(rows[0]["val"] for rows in stages.values())
    key = accuracy_key(some)
    for role, level in levels.items():
        fig.add_trace(_level(role, level, epochs))
    for stage, rows in stages.items():
        start = levels.get("start") if stage in {"distill", "control"} else None
        _line(fig, stage, rows, "val", lambda r: r["val"].get(key), "solid", start=start)
        _line(fig, stage, rows, "val, EMA", lambda r: (r.get("ema_val") or {}).get(key), "dash", start=start)
        _line(fig, stage, rows, "train", lambda r: r.get("train_top1"), "dot")
    fig.update_yaxes(title=f"{accuracy_name(some)}, %")
    return fig


def _level(role: str, level: float, epochs: int) -> go.Scatter:
    name = f"{SHORT.get(role, role)}, val"
    return go.Scatter(
        x=list(range(epochs + 1)),
        y=[level] * (epochs + 1),
        mode="lines",
        line={"color": colour(role), "width": 1.5},
        legendrank=RANKS[role],
        name=name,
        hovertemplate=f"%{{y:.2f}}%<extra>{name}</extra>",
    )


def _loss(stages: Stages, term: str) -> go.Figure:
    """Plot one loss term on the training and validation images, for each stage that has it."""
    fig = figure(height=270)
    for stage, rows in stages.items():
        _line(fig, stage, rows, "val", lambda r: _val_loss(r, term), "solid", digits=".4f")
        _line(fig, stage, rows, "train", lambda r: r["loss"].get(term), "dot", digits=".4f")
    fig.update_yaxes(title=text(loss_name(term)))
    return fig


def _val_loss(row: Row, term: str) -> float | None:
    """Look up the loss term on the validation images, where terms on features are not measured."""
    if term == "total":
        return row["val"].get("loss")
    return None if term in NO_TERMS else row["val"].get(term)


def _single(stages: Stages, key: str, title: str, digits: str) -> go.Figure:
    fig = figure(height=270)
    for stage, rows in stages.items():
        _line(fig, stage, rows, "", lambda r: r.get(key), "solid", digits=digits)
    fig.update_yaxes(title=title, rangemode="tozero", exponentformat="e" if key == "lr" else "SI")
    return fig


def _line(
    fig: go.Figure,
    stage: str,
    rows: Sequence[Row],
    what: str,
    value: Callable[[Row], float | None],
    dash: str,
    *,
    start: float | None = None,
    digits: str = ".2f",
) -> None:
    xs: list[int] = [r["epoch"] for r in rows]
    ys = [value(r) for r in rows]
    if all(y is None for y in ys):
        return
    if start is not None:
        xs, ys = [0, *xs], [start, *ys]
    role = role_of(stage)
    name = ", ".join(part for part in (SHORT.get(role, role), what) if part)
    fig.add_trace(
        go.Scatter(
            x=xs,
            y=ys,
            mode="lines+markers",
            line={"color": colour(role), "dash": dash, "width": 2},
            marker={"size": 5},
            legendrank=RANKS[role],
            name=name,
            hovertemplate=f"%{{y:{digits}}}<extra>{name}</extra>",
        )
    )


def _mark_kept(fig: go.Figure, kept: Row | None, starred: bool) -> None:
    """Draw a line at the epoch of the kept weights, and on the accuracy also a star at their figure."""
    if not kept or kept.get("epoch") is None:
        return
    fig.add_vline(x=kept["epoch"], line={"color": BLUE, "width": 1, "dash": "dash"})
    name = f"kept: {text(kept['name'])}"
    if starred:
        fig.add_trace(
            go.Scatter(
                x=[kept["epoch"]],
                y=[kept["val"][accuracy_key(kept["val"])]],
                mode="markers",
                marker={"size": 15, "symbol": "star", "color": BLUE},
                legendrank=0,
                name=name,
                hovertemplate=f"%{{y:.2f}}%<extra>{name}</extra>",
            )
        )
        return
    fig.add_annotation(
        x=kept["epoch"],
        xanchor="right",
        xshift=-3,
        y=0.99,
        yref="paper",
        yanchor="top",
        text="kept",
        showarrow=False,
        font={"size": 11},
    )


def _mark_findings(fig: go.Figure, findings: Mapping[int, Row]) -> None:
    """Draw a line at the epoch of each finding, with the finding's number at its foot."""
    at_epoch: dict[int, list[int]] = {}
    for number, finding in findings.items():
        at_epoch.setdefault(finding["epoch"], []).append(number)
    for epoch, numbers in at_epoch.items():
        fig.add_vline(x=epoch, line={"color": PURPLE, "width": 1, "dash": "dot"})
        fig.add_annotation(
            x=epoch,
            y=0.02,
            yref="paper",
            yanchor="bottom",
            text=f"<b>{', '.join(map(str, numbers))}</b>",
            showarrow=False,
            bgcolor=PURPLE,
            bordercolor=PURPLE,
            borderpad=2,
            font={"color": "#ffffff", "size": 11},
            hovertext="<br>".join(text(findings[n]["name"]) for n in numbers),
        )


# --- the choice


def candidates(options: Sequence[Row], metric: str = "top1") -> go.Figure:
    """Plot each candidate's figure on the validation images between the start (0) and its trained weights (1).

    Args:
        options: of ``candidates.json``.
        metric: ``top1`` (percent), ``nll`` (nats) or ``fidelity`` (nats).
    """
    fig = figure(height=360)
    start = next((c for c in options if c["name"] == "start"), None)
    groups = _by_source(options)
    sources = list(dict.fromkeys(source for source, _ in groups))
    for (source, recalibrated), members in groups.items():
        begin = [start] if start and not recalibrated else []
        ways = [(c["alpha"], c["val"][metric], c["name"]) for c in begin + members]
        name = f"start to {source}" + (", BatchNorm recalibrated" if recalibrated else "")
        fig.add_trace(_way(name, sorted(ways), sources.index(source), PURPLE if recalibrated else BLUE))
    for candidate in options:
        if candidate.get("alpha") is None:
            fig.add_hline(y=candidate["val"][metric], line={"color": PURPLE, "width": 1.5, "dash": "dashdot"})
            fig.add_annotation(
                x=0.01,
                xref="paper",
                y=candidate["val"][metric],
                yanchor="bottom",
                text=text(candidate["name"]),
                showarrow=False,
                font={"size": 12},
            )
    kept = next((c for c in options if c.get("kept")), None)
    if kept:
        fig.add_trace(_ring(kept, metric))
    fig.update_xaxes(title="share of the trained weights", range=[-0.05, 1.05])
    fig.update_yaxes(title=METRICS[metric])
    return fig


def _by_source(options: Sequence[Row]) -> dict[tuple[str, bool], list[Row]]:
    groups: dict[tuple[str, bool], list[Row]] = {}
    for option in options:
        if option["name"] != "start" and option.get("alpha") is not None:
            groups.setdefault((option["source"], option.get("recalibrated", False)), []).append(option)
    return groups


def _way(name: str, ways: Sequence[tuple[float, float, str]], place: int, colour: str) -> go.Scatter:
    return go.Scatter(
        x=[alpha for alpha, _, _ in ways],
        y=[figure for _, figure, _ in ways],
        text=[text(name) for _, _, name in ways],
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": DASHES[place % 4]},
        marker={"size": 7, "symbol": SYMBOLS[place % 4]},
        name=text(name),
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
    )


def _ring(kept: Row, metric: str) -> go.Scatter:
    alpha = kept.get("alpha")
    return go.Scatter(
        x=[1 if alpha is None else alpha],
        y=[kept["val"][metric]],
        mode="markers",
        marker={"size": 18, "symbol": "circle-open", "color": BLUE, "line": {"width": 3}},
        name=f"kept: {text(kept['name'])}",
        hovertemplate=f"kept: {text(kept['name'])}, %{{y:.3f}}<extra></extra>",
    )
