"""What is wrong with a recipe, in one line: the key, what was given, what is expected, and an example."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tutelage.core.recipe_tree import as_yaml
from tutelage.core.values import OUT_OF_RANGE

LONGEST = 60  # characters of a given value that a message repeats
NEAR = 0.6  # similarity from which another key is taken to be meant
# Examples for keys whose default is empty or says nothing about the form.
EXAMPLES = {
    "track": "[mlflow]",
    "train": "{epochs: 10}",
    "train.epochs": "10",
    "train.lr": "3e-4",
    "teacher.fit.epochs": "5",
    "teacher.fit.lr": "3e-4",
    "student.head_fit.epochs": "5",
    "student.head_fit.lr": "3e-3",
    "base": "recipe.yaml",
    "variants": "[{name: sharper, loss.temperature: 1}]",
    "search": "{train.lr: {low: 1e-4, high: 1e-3}}",
    "teacher.fit": "{epochs: 5}",
    "student.head_fit": "{epochs: 5}",
    "teacher.others": "[tf_efficientnet_lite1]",
    "loss.terms": "[{kl: {temperature: 2}}, {cross_entropy: {weight: 0.5}}]",
    "loss.options": "{beta: 8}",
    "data.val": "photos/val",
    "data.test": "photos/test",
}
KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "one of its keys",
    "model_attributes_type": "one of its keys",
}
BOUNDS = {
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than_equal": ("le", "a number of at most {}"),
    "greater_than": ("gt", "a number above {}"),
    "less_than": ("lt", "a number below {}"),
}


def first_error(error: ValidationError, root: type[BaseModel], equals: str = "=") -> str:
    """Put what is wrong first into one line.

    Args:
        error: of a validation of `root`.
        root: the model, in which keys and examples are looked up.
        equals: between a key and its value, as they are written where the values come from.
    """
    errors = error.errors(include_url=False)
    # a misspelt key is also missed where it should be: say what was written
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = _key(first["loc"], root)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_meant(key, first['input'], root, equals)}"
    if first["type"] == "missing":
        parent, _, last = key.rpartition(".")
        if not last.isdigit():
            return f"{key} is missing; write it, such as {_example(key, root, equals)}"
        return f"{parent}: has too few values; write {_example(parent, root, equals)}, for instance"
    expected = [_expected(e) for e in errors if _key(e["loc"], root) == key]
    if not all(expected):
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    wanted = " or ".join(dict.fromkeys(filter(None, expected)))
    return f"{key}{equals}{_shown(first['input'])}: write {wanted}, such as {_example(key, root, equals)}"


def _key(location: Sequence[int | str], root: type[BaseModel]) -> str:
    """The dotted key of an error; pydantic also names the member of a union that it has tried, which is left out."""
    parts: list[str] = []
    model: type[BaseModel] | None = root
    for place, part in enumerate(location):
        if model is None or isinstance(part, int):
            if not str(part).startswith(("constrained-", "literal[", "function-")) and not _is_tag(part):
                parts.append(str(part))
            continue
        field = model.model_fields.get(part)
        if field is None:
            if part != model.__name__ and not part.startswith("literal["):
                parts += [str(rest) for rest in location[place:]]
                break
            continue
        parts.append(part)
        model = component_of(field.annotation)
    return ".".join(parts)


def _is_tag(part: int | str) -> bool:
    return part in {"str", "int", "float", "bool"}


def component_of(annotation: Any) -> type[BaseModel] | None:
    """Return the component that a field of this annotation holds; None where it holds plain values."""
    options = [annotation, *get_args(annotation)]
    options += [inner for option in options for inner in get_args(option)]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _expected(error: ErrorDetails) -> str | None:
    kind, context = error["type"], error.get("ctx", {})
    if kind in BOUNDS:
        name, text = BOUNDS[kind]
        return text.format(f"{context[name]:g}" if context[name] < 1e6 else context[name])
    if kind == OUT_OF_RANGE:
        return error["msg"]
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    return KINDS.get(kind)


def _shown(value: Any) -> str:
    """A value as YAML writes it, in one line."""
    text = as_yaml(value) if _plain(value) else str(value).strip()
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)


def _example(key: str, root: type[BaseModel], equals: str) -> str:
    """A key with a valid value: an example, its default, or, for a component, its first key with its default."""
    bare = ".".join(part for part in key.split(".") if not part.isdigit())
    if bare in EXAMPLES:
        return f"{bare}{equals}{EXAMPLES[bare]}"
    for name, value in _defaults(root):
        plain = value not in (None, "auto", [], {})
        if plain and (name == bare or name.startswith(f"{bare}.")):
            return f"{name}{equals}{_shown(value)}"
    return f"{bare}{equals}1"


def _defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each dotted key with its default, in the order in which the keys are defined."""
    written = model.model_construct().model_dump(mode="json", warnings=False)
    for name, field in model.model_fields.items():
        inner = component_of(field.annotation)
        yield f"{prefix}{name}", None if inner is not None else written.get(name)
        if inner is not None:
            yield from _defaults(inner, f"{prefix}{name}.")


def _meant(key: str, value: Any, root: type[BaseModel], equals: str) -> str:
    """Name the key that was probably meant, or the keys beside it."""
    found = nearest_keys(key, root)
    if not found:
        parent = key.rpartition(".")[0]
        prefix = f"{parent}." if parent else ""
        beside = [name for name, _ in _defaults(root) if _is_beside(name, prefix)]
        return f"; {f'the keys of {parent}' if parent else 'the keys'} are {', '.join(beside)}"
    scalar = not isinstance(value, dict | list)
    named = " or ".join(map(repr, found))
    return f"; did you mean {named}?" + (f" Write {found[0]}{equals}{_shown(value)}" if scalar else "")


def nearest_keys(key: str, root: type[BaseModel]) -> list[str]:
    """Return the keys of this name elsewhere, else the nearest beside it, else the nearest of all; or none.

    Args:
        key: dotted, not one of the keys.
        root: the model whose keys are known.
    """
    parent, _, last = key.rpartition(".")
    known = [name for name, _ in _defaults(root)]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    least = min((name.count(".") for name in elsewhere), default=0)  # train.epochs before teacher.fit.epochs
    if elsewhere:
        return [name for name in elsewhere if name.count(".") == least]
    prefix = f"{parent}." if parent else ""
    names = [name.removeprefix(prefix) for name in known if _is_beside(name, prefix)]
    close = [f"{prefix}{name}" for name in difflib.get_close_matches(last, names, n=1, cutoff=NEAR)]
    if close:
        return close
    leaves = {name.rpartition(".")[2]: name for name in known}
    return [leaves[leaf] for leaf in difflib.get_close_matches(last, list(leaves), n=1, cutoff=NEAR)]


def _is_beside(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "." not in name.removeprefix(prefix)
