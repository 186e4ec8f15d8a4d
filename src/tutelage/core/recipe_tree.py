"""A recipe before it is checked: mappings in mappings, read from YAML and changed by dotted keys."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.core.errors import TutelageError, one_line

# Keys that had another name once, as they are written in recipes and overrides.
RENAMED = {
    "choose": "selection",
    "teacher.fit.mixed": "teacher.fit.use_mixup",
    "student.head_fit.mixed": "student.head_fit.use_mixup",
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty file is an empty one.

    Raises:
        TutelageError: it is missing, unreadable or something else.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise TutelageError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(f"{path}: cannot be read ({error})") from None
    except RepeatedKey as error:
        raise TutelageError(f"{path}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TutelageError(f"{path}: not YAML ({one_line(error)})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise TutelageError(
            f"{path}: a recipe must be a mapping of keys to values, but this is a {type(tree).__name__}"
        )
    return tree


def rename_keys(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a recipe's tree in which keys have the names of today (`RENAMED`).

    Raises:
        TutelageError: a key is given by both its old and its new name.
    """
    changed = copy.deepcopy(dict(tree))
    for old, new in RENAMED.items():
        *parents, last = old.split(".")
        place: Any = changed
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            continue
        name = new.rpartition(".")[2]
        if name in place:
            raise TutelageError(f"{where}: {old} is the old name of {new}; give only {new}")
        place[name] = place.pop(last)
    return changed


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of a ``key.key=value``; the value is read as YAML.

    Raises:
        TutelageError: it is not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise TutelageError(f"override {override!r}: write it as key.key=value")
    try:
        return key, read_value(text)
    except RepeatedKey as error:
        raise TutelageError(f"override {override!r}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise TutelageError(f"override {override!r}: the value is not YAML; put text in quotes") from None


def read_value(text: str) -> Any:
    """A value of a recipe as an override has it: YAML, but nothing of a text is cut off as YAML's comment.

    Raises:
        YAMLError: it is not YAML, or a list or a mapping has a comment.
    """
    if re.fullmatch(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+", text.strip()):
        return float(text)  # YAML 1.1 reads 1e-4 as text; people mean the number
    value = yaml.load(text, _Loader)
    place, cut = 0, ""
    for token in yaml.scan(text, _Loader):
        cut += text[place : token.start_mark.index].strip()
        place = token.end_mark.index
    cut += text[place:].strip()
    if not cut and not text.lstrip().startswith("&"):  # YAML takes &name for a label
        return value
    if isinstance(value, list | dict) or text.lstrip().startswith(("'", '"')):
        raise yaml.YAMLError(f"{cut} would be lost")
    return text.strip()


def as_yaml(value: Any) -> str:
    """Write a plain value as YAML has it, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


class _Loader(yaml.SafeLoader):
    """Reads as numbers only what is written like one: 0123 (octal), 1:30 (base 60) and 2024-05-01 stay text.

    A key that is given twice in one mapping is refused; PyYAML would take the last one in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Raises:
            RepeatedKey: a key is given twice.
        """
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                raise RepeatedKey(key.value, before.start_mark.line + 1, key.start_mark.line + 1)
        return super().construct_mapping(node, deep)


class RepeatedKey(yaml.YAMLError):
    """A key is given twice in one mapping of a YAML text."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(
            f"line {second}: {key!r} is given twice, first in line {first}; keep one of them, with all that "
            "belongs below it"
        )


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)


def set_keys(tree: dict[str, Any], values: Iterable[tuple[str, Any]]) -> None:
    """Set dotted keys of a recipe's tree, in order, to values that were read from YAML.

    Raises:
        TutelageError: a key is given by both its old and its new name.
    """
    names: dict[str, str] = {}
    for key, value in values:
        new = renamed_key(key)
        if names.setdefault(new, key) != key:
            old = key if key != new else names[new]
            raise TutelageError(f"{old} is the old name of {new}; give only {new}")
        set_key(tree, new, value)


def renamed_key(key: str) -> str:
    """Return the name of today of a dotted key, which may have been renamed (`RENAMED`)."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a recipe's tree, making the mappings on the way; the value is taken as it is."""
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if not isinstance(child, dict):
            child = as_model(child) if parent in {"teacher", "student"} and isinstance(child, str) else {}
            tree[parent] = child
        tree = child
    tree[last] = value


def has_key(tree: Any, key: str) -> bool:
    """Whether a recipe's tree gives a dotted key a value."""
    for part in key.split("."):
        tree = as_model(tree)
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def as_model(value: Any) -> Any:
    """The mapping that ``teacher: resnet50`` stands for; anything else as it is."""
    return {"model": value} if isinstance(value, str | int | float) else value


def flat(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` as ``{"train.lr": 1}``; an empty mapping stays one."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}{separator}{inner}": entry for inner, entry in flat(value, separator).items()}
        else:
            found[key] = value
    return found
