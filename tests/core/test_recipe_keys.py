"""The keys of a recipe as `tutelage recipe` shows and writes them, and the JSON schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe, dump_recipe, load_recipe
from tutelage.core.recipe_keys import find_keys, json_schema, new_recipe, sections
from tutelage.core.recipe_tree import flat, read_yaml

RECIPES = [
    p for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if "\nvariants:" not in p.read_text()
]
KEYS = {key.name: key for section in sections() for key in section.keys}


def test_every_key_is_there_in_the_order_of_a_written_recipe() -> None:
    written = yaml.safe_load(dump_recipe(Recipe()))
    names = [name for name in KEYS if not re.match(r"(teacher\.fit|student\.head_fit|export\.qad)\.", name)]
    assert sorted(names) == sorted(flat(written))
    for section in sections():
        if section.name:
            keys = [key.name.split(".")[1] for key in section.keys]
            assert list(dict.fromkeys(keys)) == list(written[section.name])
    assert {"teacher.fit.epochs", "student.head_fit.use_mixup"} <= KEYS.keys()


@pytest.mark.parametrize(
    ("name", "default", "values"),
    [
        ("control", "true", "true or false"),
        ("train.epochs", "auto", "a whole number of at least 1 or auto"),
        ("teacher.fit.epochs", "auto", "a whole number of at least 0 or auto"),
        ("train.lr", "auto", "a number above 0, auto or range"),
        ("train.seed", "0", "a whole number from 0 to 4294967295"),
        ("train.schedule", "cosine", "cosine, linear, constant or multistep"),
        ("view.flip", "0.5", "a number from 0 to 1"),
        ("view.colour", "0.0", "a number of at least 0 and below 1"),
        (
            "view.crop_scale",
            "[0.35, 1.0]",
            "a list of 2 values; each is a number above 0 and at most 1",
        ),
        ("teacher.fit", "auto", "auto, probe, no or a mapping of its keys"),
        ("teacher.resolution", "own", "a whole number of at least 16, own or best"),
        ("data.val", "null", "a text or null"),
        ("targets.resolutions", "[]", "a list; each value is a whole number of at least 16"),
        ("loss.options", "{}", "a mapping"),
    ],
)
def test_default_and_range_in_words(name: str, default: str, values: str) -> None:
    assert (KEYS[name].default, KEYS[name].values) == (default, values)


def names_of(word: str) -> list[str]:
    return [key.name for section in find_keys(word) for key in section.keys]


def test_a_key_is_found_by_its_name_a_part_its_beginning_or_its_old_name() -> None:
    assert names_of("train.lr") == ["train.lr"]
    assert names_of("selection") == ["selection.metric", "selection.interpolate", "selection.soup"]
    assert names_of("train.warm") == ["train.warmup_epochs"]
    assert names_of("choose.metric") == ["selection.metric"]
    assert names_of("teacher.fit")[:2] == ["teacher.fit", "teacher.fit.epochs"]
    assert names_of("control") == ["control"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("loss.temprature", "unknown key 'loss.temprature'; did you mean 'loss.temperature'?"),
        ("epochs", "unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("lss", "unknown key 'lss'; did you mean 'loss'?"),
        ("zzz", "unknown key 'zzz'; the parts are teacher, student, data"),
    ],
)
def test_a_mistyped_key_gets_the_nearest_one(word: str, line: str) -> None:
    with pytest.raises(TutelageError) as caught:
        find_keys(word)
    assert str(caught.value).startswith(line)


def test_a_new_recipe_is_the_defaults_with_a_comment_for_each_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(new_recipe())
    assert load_recipe(path) == Recipe()
    assert flat(read_yaml(path)).keys() == flat(yaml.safe_load(dump_recipe(Recipe()))).keys()
    lines = new_recipe().splitlines()
    keys = [place for place, line in enumerate(lines) if re.match(r" *\w+:", line)]
    assert len(keys) > 80
    assert [lines[place] for place in keys if not lines[place - 1].strip().startswith("# ")] == []


def test_the_schema_takes_every_recipe_and_what_a_recipe_may_have() -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    trees: list[dict[str, Any]] = [
        yaml.safe_load(dump_recipe(Recipe())),
        yaml.safe_load(new_recipe()),
        *(read_yaml(path) for path in RECIPES),
        {"teacher": "resnet50", "train": {"epochs": "auto"}, "student": {"head_fit": False}},
        {"teacher": {"fit": {"epochs": 3}}, "name": 20240501},
    ]
    assert len(trees) > 5
    for tree in trees:
        assert [error.message for error in schema.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "tree",
    [{"train": {"epochs": 0}}, {"train": {"lr": "fast"}}, {"los": {}}, {"teacher": {"fit": "never"}}],
)
def test_the_schema_refuses_what_a_recipe_refuses(tree: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree)
