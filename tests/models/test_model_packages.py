"""Kinds of models that installed packages add."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.packages import EXAMPLES, install, install_example
from tests.helpers.refusals import model_refusal as refusal

from tutelage.core.errors import TutelageError
from tutelage.models.class_mapping import align_heads
from tutelage.models.registry import GROUP, architecture, from_scratch, load_model
from tutelage.models.source import Model
from tutelage.models.weights import save_weights


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    return place


def same(one: Model, other: Model) -> bool:
    mine, theirs = one.module.state_dict(), other.module.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_example_package_loads_a_model(site: Path) -> None:
    assert "unknown kind 'tinynet'" in refusal("tinynet:8")  # until it is installed
    install_example("model_package", site)
    model = load_model("tinynet:8", num_classes=7, dropout=0.3)
    assert (model.spec, model.name, model.num_classes, model.pretrained) == (
        "tinynet:8",
        "tinynet:8",
        7,
        False,
    )
    assert model.module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert [m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)] == [0.3]
    assert "give the channels of the first layer" in refusal("tinynet:wide")
    assert load_model("tinynet:8").at(64).module(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_the_example_is_short() -> None:
    code = (EXAMPLES / "model_package" / "tutelage_tinynet.py").read_text().splitlines()
    assert len(code) < 40


def test_its_head_is_replaced_and_its_weights_come_back_by_name(site: Path, tmp_path: Path) -> None:
    install_example("model_package", site)
    teacher, student = load_model("tinynet:8"), load_model("tinynet:4")
    (teacher,), student, mapping = align_heads([teacher], student, ["ant", "bee", "cat"])
    assert mapping.new == {"tinynet:8", "tinynet:4"}
    assert (student.num_classes, student.class_ids) == (3, ("ant", "bee", "cat"))
    path = tmp_path / "student.safetensors"
    save_weights(student.module, path, student.metadata())
    spec = f"tinynet:4@{path}"
    back = load_model(spec)
    assert same(back, student)
    assert (back.spec, back.class_ids, back.pretrained) == (spec, student.class_ids, True)
    assert architecture(spec) == architecture("tinynet:4") == "tinynet:4"
    assert load_model(spec, num_classes=5).num_classes == 5
    assert f"{path}: was saved from tinynet:4, not from tinynet:8" in refusal(f"tinynet:8@{path}")
    assert "gone.safetensors: no such checkpoint file" in refusal("tinynet:8@gone.safetensors")


def test_an_unknown_kind_names_the_nearest() -> None:
    assert "unknown kind 'timn'; did you mean 'timm'? Write NAME@WEIGHTS" in refusal("timn:test_vit")
    assert load_model("timm:test_vit@none").spec == "test_vit@none"


def test_random_weights_are_named_for_timm_alone() -> None:
    assert from_scratch("test_vit@a/b.pth") == from_scratch("test_vit") == "test_vit@none"
    with pytest.raises(
        TutelageError, match=r"train\.from_scratch: .* known to the package of kind 'tinynet' alone"
    ):
        from_scratch("tinynet:4")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import nothing_like_it",
            "cannot be loaded (ModuleNotFoundError: No module named 'nothing_like_it')",
        ),
        ("pass", "cannot be loaded (AttributeError: module"),
        ("load = 3", "names no function `load(where, *, num_classes, dropout)`"),
        ("def load(where, **more): return [where]", "gave list, not a Model"),
    ],
)
def test_a_package_that_does_not_work_gives_one_line(site: Path, code: str, line: str) -> None:
    name = f"models{len(code)}"
    (site / f"{name}.py").write_text(code)
    install(name, {GROUP: {name: f"{name}:load"}}, site)
    assert line in refusal(f"{name}:x")
