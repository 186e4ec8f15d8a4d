"""One architecture of each of timm's families, as teacher and as student."""

import re
import runpy
import warnings
from pathlib import Path

import pytest
import timm

DOCS = Path(__file__).parents[2] / "docs"
walk = runpy.run_path(str(DOCS / "architectures.py"))
LISTED = set(re.findall(r"^\| `(\S+)` \|", (DOCS / "architectures.md").read_text(encoding="utf-8"), re.M))


@pytest.mark.slow
@pytest.mark.parametrize("name", walk["families"]())
def test_a_family_can_be_used_unless_the_docs_list_it(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        why = walk["reason"](name)
    assert bool(why) == (name in LISTED), why


def test_the_docs_list_architectures_of_timm() -> None:
    assert set(timm.list_models()) >= LISTED
    assert len(walk["families"]()) > 80
