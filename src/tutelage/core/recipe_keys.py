"""The keys of a recipe with meaning, default and range, as the models of `core.components` define them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tutelage.core.errors import TutelageError
from tutelage.core.invalid import component_of, nearest_keys
from tutelage.core.recipe import Recipe
from tutelage.core.recipe_tree import as_yaml, renamed_key

WIDTH = 100  # characters of a comment's line
DRAFT = "https://json-schema.org/draft/2020-12/schema"
EDITOR_LINE = (
    "# yaml-language-server: $schema={}"  # by which YAML's language server finds the schema of a file
)
HEAD = """\
# A recipe of tutelage: change what you want, delete what you leave as it is, and run `tutelage distill FILE`.
# Every key has its default here. `tutelage recipe KEY` explains a key.
"""


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: dotted, such as ``train.epochs``.
        meaning: what it does, with its unit.
        default: as YAML writes it.
        values: which values it takes, in words.
    """

    name: str
    meaning: str
    default: str
    values: str


@dataclass(frozen=True)
class Section:
    """The keys of one component; the first section holds the keys that belong to none, and has no name."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """Return all keys in the order in which a recipe has them."""
    plain = {name: field for name, field in Recipe.model_fields.items() if not component_of(field.annotation)}
    found = [Section("", _text(Recipe.__doc__), tuple(_keys(Recipe, only=plain)))]
    for name, field in Recipe.model_fields.items():
        if model := component_of(field.annotation):
            found.append(Section(name, _text(model.__doc__), tuple(_keys(model, f"{name}."))))
    return found


def find_keys(word: str) -> list[Section]:
    """Return the keys of this name or below it, or else those whose names begin with it.

    Args:
        word: such as ``loss`` or ``train.epochs``; the old name of a key stands for its new one.

    Raises:
        TutelageError: there is no such key; the line names the nearest one.
    """
    word = renamed_key(word).strip(".")
    for matches in (
        lambda name: name == word or name.startswith(f"{word}."),
        lambda name: name.startswith(word),
    ):
        chosen = [
            Section(one.name, one.meaning, tuple(key for key in one.keys if matches(key.name)))
            for one in sections()
        ]
        if found := [one for one in chosen if one.keys]:
            return found
    near = nearest_keys(word, Recipe)
    names = [one.name for one in sections() if one.name]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the parts are {', '.join(names)};"
    raise TutelageError(f"unknown key {word!r}; {hint} `tutelage recipe` shows all keys")


def new_recipe() -> str:
    """Return a recipe to edit: YAML in which each key has its default, and its meaning as a comment."""
    lines = [HEAD]
    for section in sections():
        if section.name:
            lines += [*_comment(section.meaning), f"{section.name}:"]
        indent = "  " if section.name else ""
        for key in section.keys:
            name = key.name.removeprefix(f"{section.name}.")
            if "." not in name:  # the keys of a fit stand in place of `auto`, which is the default
                lines += _comment(key.meaning, indent)
                lines.append(f"{indent}{name}: {key.default}  # {key.values}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, which editors use to complete and check them."""
    return {"$schema": DRAFT, **Recipe.model_json_schema(), "title": "Recipe of tutelage"}


def _keys(model: type[BaseModel], prefix: str = "", only: Mapping[str, Any] | None = None) -> Iterator[Key]:
    schema = model.model_json_schema()
    defaults = model.model_construct().model_dump(mode="json", warnings=False)
    for name, field in model.model_fields.items():
        if only is not None and name not in only:
            continue
        yield Key(
            f"{prefix}{name}",
            _text(field.description),
            as_yaml(defaults[name]),
            _values(schema["properties"][name]),
        )
        if inner := component_of(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _text(description: str | None) -> str:
    return " ".join((description or "").split())


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _values(schema: Mapping[str, Any]) -> str:
    """Put the values that a JSON schema allows into words."""
    options = schema.get("anyOf", [schema])
    is_text = any(option.get("type") == "string" and "enum" not in option for option in options)
    # a text may be written as a whole number, which says nothing of its meaning
    words = [
        word for option in options for word in _options(option) if not (is_text and word == "a whole number")
    ]
    *most, last = sorted(
        dict.fromkeys(words), key=lambda word: (word == "null", word.startswith("a mapping"))
    )
    return f"{', '.join(most)} or {last}" if most else last


def _options(schema: Mapping[str, Any]) -> list[str]:
    """Name the values of a schema without alternatives; several where it lists them."""
    if "anyOf" in schema:
        return [word for option in schema["anyOf"] for word in _options(option)]
    if "$ref" in schema:
        return ["a mapping of its keys"]
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return [str(value) for value in values if value is not False]  # YAML 1.1 reads `no` as false
    kind = schema["type"]
    if kind in {"integer", "number"}:
        return [_number(schema)]
    if kind == "array" and "prefixItems" in schema:
        items = schema["prefixItems"]
        return [f"a list of {len(items)} values; each is {_values(items[0])}"]
    if kind == "array":
        return [f"a list; each value is {_values(schema['items'])}"]
    return [{"boolean": "true or false", "string": "a text", "null": "null", "object": "a mapping"}[kind]]


def _number(schema: Mapping[str, Any]) -> str:
    whole = schema["type"] == "integer"
    kind = "a whole number" if whole else "a number"
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if whole and below is not None:
        most, below = below - 1, None
    if least is not None and most is not None:
        return f"{kind} from {least} to {most}"
    bounds = [
        (least, "of at least {}"), (above, "above {}"), (most, "at most {}"), (below, "below {}"),
    ]  # fmt: skip
    words = [text.format(bound) for bound, text in bounds if bound is not None]
    return f"{kind} {' and '.join(words)}" if words else kind
