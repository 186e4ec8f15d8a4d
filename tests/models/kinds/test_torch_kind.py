"""A user's own function as a model, and who may name it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights

MODULE = """
import timm
from pathlib import Path

Path("ran.txt").write_text("the code was run")

def make():
    return timm.create_model("test_resnet", num_classes=4)

def text():
    return "no model"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_models", raising=False)
    (tmp_path / "own_models.py").write_text(MODULE)
    return tmp_path


def test_a_function_makes_a_model_and_a_file_its_weights(own: Path) -> None:
    model = load_model("torch:own_models:make")
    assert (model.num_classes, model.name) == (4, "torch:own_models:make")
    named = model.with_head(["a", "b"])
    save_weights(named.module, own / "saved.safetensors", named.metadata())
    back = load_model(f"torch:own_models:make@{own / 'saved.safetensors'}")
    assert back.class_ids == ("a", "b")
    assert all(torch.equal(t, named.module.state_dict()[k]) for k, t in back.module.state_dict().items())


def test_what_is_no_model_gives_one_line(own: Path) -> None:
    for spec, words in {
        "torch:own_models": "write torch:package.module:function",
        "torch:own_models:text": "returns str",
        "torch:own_models:absent": "AttributeError",
        "torch:no_such_module:make": "ModuleNotFoundError",
    }.items():
        with pytest.raises(TutelageError, match=words) as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)


def recipe(own: Path) -> Path:
    path = own / "recipe.yaml"
    path.write_text(
        "teacher: {model: 'torch:own_models:make', resolution: 32}\n"
        "student: {model: test_efficientnet@none, resolution: 32}\n"
        "data: {limit: 100, workers: 0}\ntrain: {batch_size: 16}\n"
    )
    return path


def test_a_recipe_from_elsewhere_runs_no_code(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(recipe(own)), "--dry-run"])
    assert ended.value.code == 2
    assert "is code that the recipe or the run names" in capsys.readouterr().err
    assert not (own / "ran.txt").exists()


@pytest.mark.parametrize("words", [["--allow-code"], ["--teacher", "torch:own_models:make"]])
def test_a_user_may_allow_it(own: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(recipe(own)), "--dry-run", *words])
    assert not ended.value.code
    assert (own / "ran.txt").exists()
