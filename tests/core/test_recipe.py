"""Recipes: overrides, shorthands, and one clear line for what is wrong."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from tutelage.core.recipe_tree import RENAMED, flat

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_defaults_come_back_from_their_yaml() -> None:
    assert parse_recipe(yaml.safe_load(dump_recipe(Recipe()))) == Recipe()


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if "\nvariants:" not in p.read_text()], ids=lambda p: p.name
)
def test_shipped_recipes_are_valid_and_say_how_they_are_run(path: Path) -> None:
    load_recipe(path)
    assert f"tutelage distill recipes/{path.name}" in path.read_text().split("\nname:")[0]


def test_overrides_reach_nested_keys() -> None:
    recipe = load_recipe(None, ["train.epochs=3", "train.lr=1e-4", "teacher=resnet50", "track=[mlflow]"])
    assert (recipe.train.epochs, recipe.train.lr) == (3, 1e-4)
    assert recipe.teacher.model == "resnet50"
    assert recipe.track == ("mlflow",)


def test_a_shorthand_model_and_an_override_below_it_go_together(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("teacher: resnet50\n")
    recipe = load_recipe(path, ["teacher.resolution=128"])
    assert (recipe.teacher.model, recipe.teacher.resolution) == ("resnet50", 128)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train.epoch'; did you mean 'train.epochs'\? Write train.epochs=3"),
        ("trian.epochs=3", r"unknown key 'trian'; did you mean 'train'"),
        ("train.epochs=none", r"train.epochs"),
        ("train.epochs=0", r"train.epochs"),
        ("train.lr=-1", r"train.lr"),
        ("train.seed=-1", r"train.seed=-1: write a number of at least 0, such as train.seed=0"),
        ("train.seed=4294967296", r"train.seed=4294967296: write a number below 4294967296"),
        ("data.split_seed=-1", r"data.split_seed=-1: write a number of at least 0"),
        ("train.epochs", r"write it as key.key=value"),
        ("train.epochs=[", r"not YAML"),
        ("teacher.fit.epoch=3", r"teacher.fit.*epoch"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(TutelageError, match=message) as caught:
        load_recipe(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "a mapping"),
        ("a: [", "not YAML"),
        ("train: 5", "train"),
        ("!!python/object:os.x {}", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(TutelageError, match=message) as caught:
        load_recipe(path)
    assert "wrong.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(TutelageError, match="nothing to learn"):
        load_recipe(None, ["loss.weight=0", "loss.label_weight=0"])


# --- texts that YAML would take for something else


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("folder:/set #2", "folder:/set #2"),
        ("#5", "#5"),
        ("'a #b'", "a #b"),
        ("&a b", "&a b"),
        ("20240501", "20240501"),
        ("0123", "0123"),
        ("12:30", "12:30"),
        ("2024-05-01", "2024-05-01"),
    ],
)
def test_an_override_loses_nothing_of_a_text(text: str, value: str) -> None:
    assert load_recipe(None, [f"data.train={text}"]).data.train == value


def test_images_for_a_teacher_that_are_of_no_use_are_refused() -> None:
    for fit, folds, named in (
        ("no", None, "teacher.fit=no fits it to none"),
        ("probe", 3, "are out of fold"),
    ):
        tree = {"data": {"teacher": "photos"}, "teacher": {"fit": fit}, "targets": {"folds": folds}}
        with pytest.raises(TutelageError, match=named):
            parse_recipe(tree)


@pytest.mark.parametrize("text", ["[mlflow] # x", "{a: b} #c", "a: b #c", "'a' #b", "folder:/x: #2"])
def test_an_override_that_yaml_would_cut_is_refused(text: str) -> None:
    with pytest.raises(TutelageError, match="put text in quotes"):
        load_recipe(None, [f"data.train={text}"])


@pytest.mark.parametrize(
    ("text", "kind"), [("1.10", "a number"), ("on", "a truth value"), ("1e5", "a number")]
)
def test_an_unquoted_text_that_yaml_has_changed_is_refused(text: str, kind: str) -> None:
    with pytest.raises(TutelageError, match=f"teacher.model: YAML reads this text as {kind}"):
        load_recipe(None, [f"teacher={text}"])
    assert load_recipe(None, [f"teacher='{text}'"]).teacher.model == text


def test_whole_numbers_are_names_too(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: 20240501\nteacher: {model: 123}\nstudent: 0123\ndata: {val: 2024-05-01}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.teacher.model, recipe.student.model) == ("20240501", "123", "0123")
    assert recipe.data.val == "2024-05-01"
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_numbers_may_be_written_as_people_write_them() -> None:
    recipe = load_recipe(None, ["data.limit=1e4", "train.epochs=007", "train.lr=3e-4", "train.seed=1_000"])
    assert (recipe.data.limit, recipe.train.epochs, recipe.train.lr) == (10_000, 7, 3e-4)
    assert recipe.train.seed == 1000


# --- keys that had another name

OLD = {
    "choose": {"metric": "nll"},
    "teacher": {"fit": {"mixed": True}},
    "student": {"model": "resnet18", "head_fit": {"epochs": 2, "mixed": True}},
}


def assert_understood(recipe: Recipe) -> None:
    assert recipe.selection.metric == "nll"
    assert recipe.teacher.fit.use_mixup is True  # type: ignore[union-attr]
    assert recipe.student.head_fit.use_mixup is True  # type: ignore[union-attr]


def test_old_keys_in_a_file_are_understood_and_written_under_their_new_names(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(OLD))
    recipe = load_recipe(path)
    assert_understood(recipe)
    written = yaml.safe_load(dump_recipe(recipe))
    assert set(RENAMED.values()) <= {key for new in RENAMED.values() for key in _prefixes(flat(written), new)}
    assert not any(_prefixes(flat(written), old) for old in RENAMED)
    assert parse_recipe(written) == recipe


def _prefixes(keys: dict[str, object], name: str) -> set[str]:
    return {name for key in keys if key == name or key.startswith(f"{name}.")}


def test_old_keys_of_a_tree_are_understood_and_the_tree_stays_as_it_is() -> None:
    before = yaml.safe_dump(OLD)
    assert_understood(parse_recipe(OLD))
    assert yaml.safe_dump(OLD) == before


def test_old_keys_in_overrides_are_understood() -> None:
    words = ["choose.metric=nll", "teacher.fit.mixed=true", "student.head_fit.mixed=true"]
    assert_understood(load_recipe(None, words))
    assert load_recipe(None, ["choose={soup: false}"]).selection.soup is False


def test_an_override_by_the_new_name_changes_what_a_file_gives_by_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(OLD))
    recipe = load_recipe(path, ["selection.soup=false", "selection.metric=top1", "teacher.fit.epochs=7"])
    assert (recipe.selection.metric, recipe.selection.soup) == ("top1", False)
    assert (recipe.teacher.fit.epochs, recipe.teacher.fit.use_mixup) == (7, True)  # type: ignore[union-attr]


def test_an_old_and_a_new_name_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("choose: {soup: false}\nselection: {metric: nll}\n")
    with pytest.raises(TutelageError, match=r"both.yaml: choose is the old name of selection; give only sel"):
        load_recipe(path)
    for words in (
        ["choose.metric=nll", "selection.metric=nll"],
        ["selection.metric=nll", "choose.metric=nll"],
    ):
        with pytest.raises(
            TutelageError, match=r"choose.metric is the old name of selection.metric; give onl"
        ):
            load_recipe(None, words)


@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused_in_one_line(text: str) -> None:
    refusal = ""
    try:
        load_recipe(None, [text])
    except TutelageError as error:
        refusal = str(error)
    assert "\n" not in refusal
