"""The loss of docs/extending.md works as it stands there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from tests.helpers.packages import EXAMPLES, install

from tutelage.core.recipe import parse_recipe
from tutelage.distillation.losses.registry import make_term, names

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def block(kind: str) -> str:
    """The first code of a kind on the page."""
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_loss_on_the_page_is_found_and_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_losses.py").write_text(block("python"))
    install("my-losses", tomllib.loads(block("toml"))["project"]["entry-points"], tmp_path)
    assert "cosine" in names()
    (name, settings), *others = (
        item for term in parse_recipe(yaml.safe_load(block("yaml"))).loss.terms for item in term.items()
    )
    assert [other[0] for other in others] == ["cross_entropy"]
    term = make_term(name, settings)
    assert term.weight == 2
    logits = torch.randn(4, 3)
    assert term.function(logits, -logits, margin=0.1).item() == pytest.approx(1.9, abs=1e-5)


def test_the_examples_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"\(\.\./examples/(\w+)\)", PAGE.read_text(encoding="utf-8")))
    assert named == {"source_package", "model_package"}
    assert all((EXAMPLES / name / "pyproject.toml").is_file() for name in named)
