"""The colours that the report and the page for photographs share."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(str(files("tutelage")))
COLOURS = (ROOT / "core/colours.css").read_text()


@pytest.mark.parametrize("style", ["report/templates/page.css", "deploy/web/page/style.css"])
def test_a_page_uses_colours_that_there_are_and_has_none_of_its_own(style: str) -> None:
    text = (ROOT / style).read_text()
    used = set(re.findall(r"var\((--[\w-]+)[,)]", text))
    assert {"--bg", "--ink", "--link"} <= used
    assert used - {"--least"} <= set(
        re.findall(r"^ +(--[\w-]+):", COLOURS, re.MULTILINE)
    )  # --least is a width
    assert not re.findall(r"^ *--[\w-]+: *#", text, re.MULTILINE)


def test_each_colour_is_dark_where_the_page_is() -> None:
    light, dark = COLOURS.split("@media")
    assert re.findall(r"(--[\w-]+): #", light) == re.findall(r"(--[\w-]+): #", dark)
