"""One colour, one mark and one name for each role, everywhere on the page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's colours, told apart by colour-blind readers; each has a contrast of 3 or more on the light and
# on the dark page, so that lines and marks are the same in both.
BLUE, VERMILION, GREEN, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#7A7A7A", "#AA4499"

COLOURS = {
    "teacher": GREEN, "start": GREY, "control": VERMILION, "distilled": BLUE, "probe": PURPLE, "teacher-probe": PURPLE,
}  # fmt: skip
SYMBOLS = {
    "teacher": "square", "start": "circle", "control": "diamond", "distilled": "star", "probe": "x",
    "teacher-probe": "x",
}  # fmt: skip
NAMES = {
    "teacher": "Teacher",
    "start": "Starting student",
    "control": "Labels-only control",
    "distilled": "Distilled student",
    "probe": "Linear probe",
    "teacher-probe": "Probe of the teacher’s features",
}
STAGE_NAMES = {
    "teacher-fit": "fit of the teacher",
    "head-fit": "fit of the head",
    "control": "labels-only control",
    "distill": "distillation",
}
TERM_NAMES = {  # of loss terms; older runs have `kd` and `label`
    "kd": "distillation",
    "label": "hard-label cross-entropy",
    "cross_entropy": "cross-entropy",
    "soft_cross_entropy": "soft cross-entropy",
    "standardised_kl": "standardised KL",
    "l2_sp": "L2-SP",
    "vkd": "VkD",
}
ACRONYMS = {
    "kl",
    "mse",
    "dkd",
    "nkd",
    "dist",
    "wttm",
    "rkd",
    "cka",
    "crd",
    "ickd",
    "srd",
    "mlld",
    "rld",
    "kd",
}
FILE_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO", "int8": "int8", "bf16": "bf16"}
FILE_SYMBOL = "triangle-up"  # a deployed file holds the distilled student: its colour, another mark

FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, system-ui, sans-serif"
QUIET = "rgba(128,128,128,0.25)"  # grids and bands on either scheme
LINE = "rgba(128,128,128,0.7)"
CLEAR = "rgba(0,0,0,0)"


def colour(role: str) -> str:
    """Give the colour of a role; a deployed file has that of the distilled student."""
    return COLOURS.get(role, BLUE)


def symbol(role: str) -> str:
    """Give Plotly's name of the role's mark."""
    return SYMBOLS.get(role, FILE_SYMBOL)


def role_name(role: str) -> str:
    """Give the readable name of a role: ``int8`` becomes ``Deployed: int8``, ``distilled@128`` is at 128 px."""
    if role in NAMES:
        return NAMES[role]
    base, at, resolution = role.partition("@")
    if at:
        return f"{role_name(base)} at {resolution} px"
    return "Deployed: " + " ".join(FILE_NAMES.get(part, part) for part in role.split("-"))


def stage_name(stage: str) -> str:
    """Give the readable name of a training stage: ``teacher-fit-2`` becomes ``fit of the teacher 2``."""
    kind, number = (stage[:-2], stage[-2:].replace("-", " ")) if stage[-2:-1] == "-" else (stage, "")
    return f"{STAGE_NAMES[kind]}{number}" if kind in STAGE_NAMES else stage


def accuracy_key(val: Mapping[str, Any]) -> str:
    """Give the key of the accuracy in validation figures; that of the agreement where there are no labels."""
    return "agreement" if val.get("top1") is None and "agreement" in val else "top1"


def accuracy_name(val: Mapping[str, Any]) -> str:
    """Give the name of the figure that `accuracy_key` finds: ``top-1`` or ``agreement with the teacher``."""
    return {"top1": "top-1", "agreement": "agreement with the teacher"}[accuracy_key(val)]


def loss_name(term: str) -> str:
    """Give the readable name of a loss term: ``feature_mse`` becomes ``feature MSE loss``."""
    words = " ".join(word.upper() if word in ACRONYMS else word for word in term.split("_"))
    name = TERM_NAMES.get(term, words)
    return name if name.endswith("loss") else f"{name} loss"


def text(value: Any, limit: int = 0) -> str:
    """Escape a name for use inside a figure: Plotly reads tags in text, so they are escaped.

    Direction is isolated, so that a right-to-left name leaves its surroundings alone; longer than `limit`
    characters (0: any) is cut with an ellipsis.
    """
    name = " ".join(str(value).split())
    if limit and len(name) > limit:
        name = name[: limit - 1] + "…"
    escaped = html.escape(name, quote=False)
    return escaped if name.isascii() else f"\u2068{escaped}\u2069"


def figure(height: int = 320, **layout: Any) -> go.Figure:
    """Make an empty figure in the page's style; dragging is off, so that a phone scrolls past it."""
    axis = {
        "gridcolor": QUIET,
        "zeroline": False,
        "linecolor": LINE,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12}},
    }
    template = go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": [BLUE, VERMILION, GREEN, PURPLE, GREY],
            "xaxis": axis | {"showgrid": False, "showline": True},
            "yaxis": axis | {"ticklabelstandoff": 4},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left", "namelength": -1},
        }
    )
    own: dict[str, Any] = {"template": template, "height": height, "dragmode": False}
    return go.Figure(layout=own | {"margin": {"l": 8, "r": 12, "t": 12, "b": 8}} | layout)
