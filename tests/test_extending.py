"""The losses of docs/extending.md work as they stand there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from tests.helpers.packages import EXAMPLES, install

from tutelage import Distiller
from tutelage.core.recipe import parse_recipe
from tutelage.distillation.losses.registry import GROUP, make_term, names
from tutelage.distillation.objective import terms_of

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def block(kind: str, place: int = 0) -> str:
    """A block of code on the page, by its number among those of its kind."""
    return str(re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[place])


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


def test_the_term_on_the_page_trains_its_projector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_terms.py").write_text(block("python", 1))
    install("my-terms", {GROUP: {"pooled_cosine": "my_terms:PooledCosine"}}, tmp_path)
    recipe = parse_recipe(
        yaml.safe_load(block("yaml", 1).replace("stages.3", "blocks.4"))
    )  # of the test networks
    terms = terms_of(recipe.loss)
    assert [(term.name, term.weight) for term in terms] == [
        ("pooled_cosine", 2), ("kl", 1), ("cross_entropy", 0.5),
    ]  # fmt: skip
    torch.manual_seed(0)
    distiller = Distiller("test_efficientnet@none", "test_efficientnet@none", terms)
    losses = distiller(torch.randn(4, 3, 32, 32), torch.arange(4))
    losses["loss"].backward()
    assert 0 < losses["pooled_cosine"].item() < 4  # weight times 0..2
    gradient = terms[0].projector.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_the_examples_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"\(\.\./examples/(\w+)\)", PAGE.read_text(encoding="utf-8")))
    assert named == {"source_package", "model_package", "loss_package"}
    assert all((EXAMPLES / name / "pyproject.toml").is_file() for name in named)
