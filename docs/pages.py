"""Pages of the site that are made from other files: README, changes, recipes, examples, keys, and commands.

MkDocs calls the functions `on_...` when it builds the site (`make docs`).
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from tutelage.cli import app
from tutelage.core.recipe_keys import sections

ROOT = Path(__file__).parents[1]
WHOLE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LISTED = {"recipes": "recipes.md", "examples": "examples.md"}  # folders of which each file is shown
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
LINK = re.compile(r"\[([^\[\]]+)\]\(([^)\s:]+)\)")  # one within the repository: it has no scheme


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in WHOLE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for folder, page in LISTED.items():
        files.append(File.generated(config, page, content="\n".join(listing(folder))))
    for path in [ROOT / "CITATION.cff", *sorted(ROOT.glob("notebooks/*.ipynb"))]:  # to download
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and let links point to pages of the site."""
    for name, lines in (("recipe keys", recipe_keys), ("commands", commands)):
        mark = f"<!-- {name}: made by docs/pages.py -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(lines()))
    source = next((s for s, p in WHOLE.items() if p == page.file.src_uri), f"docs/{page.file.src_uri}")
    return site_links(source, markdown)


def site_links(source: str, markdown: str) -> str:
    """Let links between files of the repository point to pages of the site."""
    return LINK.sub(lambda found: _link(source, found[1], found[2]), markdown)


def listing(folder: str) -> Iterator[str]:
    """Yield a page that shows each file of a folder, and of the folders in it."""
    yield f"# {folder.capitalize()}\n"
    for path in sorted(ROOT.joinpath(folder).iterdir(), key=lambda path: (path.is_dir(), path.name)):
        members = sorted(path.glob("*.*")) if path.is_dir() else [path]
        yield f"## {path.name} {{ #{path.name} }}\n"
        for file in members:
            if file.suffix in LANGUAGES:
                title = f' title="{file.name}"' if path.is_dir() else ""
                yield f"```{LANGUAGES[file.suffix]}{title}\n{file.read_text(encoding='utf-8').rstrip()}\n```\n"


def recipe_keys() -> Iterator[str]:
    """Yield all keys of a recipe, each with its default, its values and its meaning."""
    for section in sections():
        yield f"## {section.name or 'Of the whole run'}\n\n{section.meaning}\n"
        for key in section.keys:
            yield f"### `{key.name}` {{ #{key.name} }}\n"
            yield f"`{key.default}` by default; {_text(key.values)}.\n{{ .values }}\n\n{_text(key.meaning)}\n"


def commands() -> Iterator[str]:
    """Yield all commands, each with its arguments and options, as `--help` has them."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="tutelage")
    for name, command in group.commands.items():
        if not command.hidden:
            inner = typer.Context(command, info_name=name, parent=context)
            yield f"## {name}\n\n{command.help}\n"
            yield f"```\n{inner.command_path} {' '.join(command.collect_usage_pieces(inner))}\n```\n"
            rows = [row for param in command.get_params(inner) if (row := param.get_help_record(inner))]
            yield "| argument or option | meaning |\n|---|---|"
            yield from (f"| `{words}` | {_text(meaning)} |" for words, meaning in rows)
            yield ""


def _text(words: str) -> str:
    """Protect what Markdown would read as markup or as a column."""
    return html.escape(words, quote=False).replace("|", "\\|").replace("*", "\\*")


def _link(source: str, text: str, target: str) -> str:
    """Return a link of a file of the repository, as the site has it."""
    path, hash_, heading = target.partition("#")
    if not path:
        return f"[{text}]({target})"
    page, place = _page(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
    if text == target and page.endswith(".md") and not place:
        text = _title(ROOT / "docs" / page, text)
    return f"[{text}]({page}{f'#{place}' if place else hash_ + heading})"


def _page(path: str) -> tuple[str, str]:
    """Return the page of the site that shows a file of the repository, and the place on it."""
    folder, _, name = path.partition("/")
    if path == "notebooks":
        return "index.md", "more"  # where the README lists them
    if folder in LISTED:
        return LISTED[folder], name
    return WHOLE.get(path, path.removeprefix("docs/")), ""


def _title(page: Path, otherwise: str) -> str:
    found = re.match(r"# (.*)", page.read_text(encoding="utf-8")) if page.is_file() else None
    return found[1] if found else otherwise
