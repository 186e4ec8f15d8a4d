"""The command that explains the keys of a recipe, and writes a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.core.errors import TutelageError

if TYPE_CHECKING:
    from tutelage.core.recipe_keys import Section

INDENT = 4  # columns before the meaning of a key


def recipe(
    word: Annotated[
        str | None,
        typer.Argument(
            help="A key or its beginning, such as loss or train.epochs; with --new or --schema, the file to write.",
            metavar="KEY|FILE",
            show_default=False,
        ),
    ] = None,
    new: Annotated[
        bool,
        typer.Option("--new", help="Write a recipe to edit: each key with its default and its meaning."),
    ] = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Write the JSON schema of recipes, with which editors complete and check them."
        ),
    ] = False,
) -> None:
    """Explain the keys of a recipe: meaning, unit, default and range. Or write a new recipe.

    YAML's language server uses the schema for a recipe with this line:
    `# yaml-language-server: $schema=FILE`
    """
    import json

    from tutelage.core.recipe_keys import EDITOR_LINE, find_keys, json_schema, new_recipe, sections

    if new and schema:
        raise TutelageError("--new and --schema: give one of them")
    if new:
        _write(word, new_recipe(), f"run it with `tutelage distill {word}`")
    elif schema:
        text = json.dumps(json_schema(), indent=2) + "\n"
        _write(word, text, f"an editor uses it where a recipe has the line `{EDITOR_LINE.format(word)}`")
    else:
        _show(find_keys(word) if word else sections())


def _write(file: str | None, text: str, hint: str) -> None:
    """Write a new file, or to standard output where none is named."""
    if file is None:
        print(text, end="")
        return
    from tutelage.core.files import write_text

    path = Path(file)
    if path.exists():
        raise TutelageError(f"{file}: exists already; remove it, or name another file")
    write_text(path, text)
    print(f"written to {file}; {hint}")


def _show(found: list[Section]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for place, section in enumerate(found):
        title = f"{section.name}: {section.meaning}" if section.name else section.meaning
        console.print(Text(title, "bold"))
        for key in section.keys:
            console.print(Text.assemble((f"{key.name}={key.default}", "cyan"), (f"  ({key.values})", "dim")))
            console.print(Padding(Text(key.meaning), (0, 0, 0, INDENT)))
        if place < len(found) - 1:
            console.print()
