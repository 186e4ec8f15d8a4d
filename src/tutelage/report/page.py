"""One self-contained HTML page: it loads nothing over the network and runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from tutelage.report.style import colour, loss_name, role_name

UNLABELLED = (
    "The test images have no labels, so that no accuracy is known. The comparison table shows how far each model "
    "agrees with the teacher."
)
TEMPLATES = Path(__file__).parent / "templates"
COLOURS = files("tutelage.core") / "colours.css"  # also those of the page that classifies photographs


@dataclass(frozen=True)
class Section:
    """A part of the page; `html` is its content without the heading.

    `awaited`: the run has not got as far as this section yet.
    """

    id: str
    title: str
    html: Markup
    awaited: bool = False


@dataclass(frozen=True)
class Embedded:
    """A figure as the page's script reads it, and the style that bounds its width."""

    height: int
    widths: str
    json: Markup


def embed(figure: go.Figure) -> Embedded:
    """Convert a figure to JSON that cannot end its script element."""
    widths = (f"{name.replace('_', '-')}: {pixels}px" for name, pixels in (figure.layout.meta or {}).items())
    text = _harmless(plotly.io.to_json(figure, validate=False))
    return Embedded(figure.layout.height, "; ".join(widths), text)


def _harmless(text: str) -> Markup:
    """Escape JSON so that it cannot end the script element that it stands in."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _cells_json(rows: Sequence[Sequence[Any]]) -> Markup:
    """Write rows of cells as JSON: a list of text, sort key and small second line for each cell."""
    found = [[[cell.text, cell.sort, cell.note] for cell in row] for row in rows]
    return _harmless(json.dumps(found, separators=(",", ":")))


def render_section(id: str, title: str, template: str, **context: Any) -> Section:
    """Fill one of the templates under ``templates/sections``."""
    return Section(id, title, Markup(_environment().get_template(f"sections/{template}").render(**context)))


def missing(id: str, title: str, why: str) -> Section:
    """Make a section that says why its data are missing."""
    return render_section(id, title, "missing.html.j2", why=why)


def awaited(id: str, title: str, why: str) -> Section:
    """Make a section whose data the run has not made yet; it is shown where the run has ended without them."""
    return replace(missing(id, title, why), awaited=True)


def render_main(sections: Sequence[Section]) -> Markup:
    """Render all sections, each with a digest by which an open page knows whether it has changed."""
    digests = [hashlib.sha256(_text(s.html)).hexdigest()[:16] for s in sections]
    return Markup(
        _environment().get_template("main.html.j2").render(sections=list(zip(sections, digests, strict=True)))
    )


def render_page(title: str, sections: Sequence[Section], watch: str = "", plots: bool = True) -> str:
    """Render the whole page.

    Args:
        title: of the browser's window.
        sections: in order; the first is the page's head.
        watch: address that the page asks for its own newer content; empty: never.
        plots: whether there are any; without them the page needs no Plotly, which is 4 MB.
    """
    plotly_script, script = _scripts()
    plotly_script = plotly_script if plots else ""
    return (
        _environment()
        .get_template("base.html.j2")
        .render(
            title=title,
            sections=[s for s in sections if s.title],
            main=render_main(sections),
            watch=watch,
            policy=_policy([plotly_script, script]),
            css=Markup(
                COLOURS.read_text(encoding="utf-8") + (TEMPLATES / "page.css").read_text(encoding="utf-8")
            ),
            plotly=Markup(plotly_script),
            script=Markup(script),
        )
    )


def encode(page: str) -> bytes:
    """Encode as UTF-8; a file name in another encoding gets a question mark for each byte that is lost."""
    return _text(page)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tutelage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"colour": colour, "role_name": role_name, "loss_name": loss_name}
    environment.globals |= {"caption_id": _caption_id, "cells_json": _cells_json}
    environment.filters["minus"] = _minus
    return environment


def _minus(sentence: str) -> Markup:
    """Give numbers a proper minus sign, and keep ``top-1`` on one line."""
    text = str(escape(re.sub(r"(?<![\w-])-(?=\d)", "\u2212", sentence)))
    return Markup(re.sub(r"\btop-[15]\b", r'<span class="together">\g<0></span>', text))


def _caption_id(caption: str) -> str:
    """Make an id that is the same whenever the page is made, so that unchanged sections stay equal."""
    return f"caption-{hashlib.sha256(_text(caption)).hexdigest()[:10]}"


@cache
def _scripts() -> tuple[str, str]:
    """Read Plotly and the page's script as the browser will hash them, with normalised line ends."""
    texts = get_plotlyjs(), (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return tuple(re.sub(r"\r\n?", "\n", text) for text in texts)  # type: ignore[return-value]


def _policy(scripts: Sequence[str]) -> str:
    """Allow only the page's own scripts, and requests only to the server of a watched page."""
    digests = [base64.b64encode(hashlib.sha256(_text(s)).digest()).decode() for s in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
