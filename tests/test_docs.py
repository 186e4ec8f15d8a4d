"""What the documentation names exists: commands and their options, links, recipe keys, code, and tests."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

import tutelage
from tutelage import losses
from tutelage.cli import app
from tutelage.core.components import QadRecipe
from tutelage.core.recipe import FitRecipe, Recipe, load_recipe, parse_recipe
from tutelage.distillation.objective import terms_of

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
WITH_KEYS = [*PAGES, *sorted(ROOT.glob("recipes/*.yaml"))]
SECTIONS = (
    "train",
    "loss",
    "data",
    "view",
    "teacher",
    "student",
    "targets",
    "selection",
    "preflight",
    "export",
)
NESTED = {
    "fit": FitRecipe,
    "head_fit": FitRecipe,
    "qad": QadRecipe,
}  # components beside which a word may stand
FILES = ("safetensors", "json", "jsonl", "yaml", "py", "md", "npz", "onnx", "tflite", "html", "pt", "pth")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code(text: str) -> Iterator[str]:
    """Inline code, and the lines of indented and fenced blocks; Python blocks are left out."""
    text = PYTHON.sub("", text)
    for fenced in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from fenced.splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.sub(r" \\\n *", " ", text).splitlines():
        if line.startswith("    "):
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `tutelage COMMAND` with the options after it."""
    for line in code(text):
        for found in re.finditer(
            r"(?<!from )(?<!import )\btutelage +([a-z]\w*)([^|;]*)", line.partition("  #")[0]
        ):
            yield found[1], re.findall(r"(?<!\S)--[a-z][\w-]*", found[2])


def cli() -> dict[str, set[str]]:
    """The options of each command that is shown in the help."""
    group = typer.main.get_command(app)
    return {
        name: {"--help"} | {word for p in command.params for word in [*p.opts, *p.secondary_opts]}
        for name, command in group.commands.items()
        if not command.hidden
    }


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    values = model.model_construct() if model in NESTED.values() else model()
    for name in type(values).model_fields:
        yield prefix + name
        inner = NESTED.get(name, type(getattr(values, name)))
        if issubclass(inner, BaseModel):
            yield from recipe_keys(inner, f"{prefix}{name}.")


def mentioned_keys(page: Path) -> set[str]:
    """Dotted words in code (or in the comments of a recipe) that begin with a section of the recipe."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        lines = [line for line in text.splitlines() if line.startswith("#")]
    else:
        lines = list(code(text)) + [line for block in PYTHON.findall(text) for line in block.splitlines()]
        lines = [re.sub(r"^.*settings=\{(.*)\}.*$", r"\1", line) for line in lines]
    pattern = rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})(?:\.[a-z_]\w*)+)(?![\w(/])"
    words = {word for line in lines for word in re.findall(pattern, line)}
    return {word for word in words if word.rpartition(".")[2] not in FILES}


@pytest.fixture(scope="module")
def pages() -> Any:
    """docs/pages.py, which makes pages of the site."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    known = cli()
    for command, options in commands(page.read_text(encoding="utf-8")):
        assert command in known, f"{page.name}: tutelage {command}"
        assert {*options} <= known[command], f"{page.name}: tutelage {command} {options}"


def test_the_readme_names_every_command() -> None:
    named = {command for command, _ in commands(README.read_text(encoding="utf-8"))}
    assert named == set(cli())


@each_page
def test_links_point_to_something(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}
            assert heading in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize("page", WITH_KEYS, ids=lambda page: page.name)
def test_recipe_keys_exist(page: Path) -> None:
    assert mentioned_keys(page) <= set(recipe_keys())


def test_keys_are_found_and_a_wrong_one_would_be_seen(tmp_path: Path) -> None:
    assert {"train.epochs", "loss.name", "view.mixup"} <= mentioned_keys(README)
    page = tmp_path / "page.md"
    page.write_text("Set `train.epoch=3` in `data.parquet`, see `student.safetensors` and `loss.terms`.\n")
    assert mentioned_keys(page) - set(recipe_keys()) == {"train.epoch", "data.parquet"}


@each_page
def test_python_parses_and_its_imports_resolve(page: Path) -> None:
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tutelage":
                module = importlib.import_module(node.module or "")
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "tutelage"
            ):
                assert hasattr(importlib.import_module("tutelage"), node.attr), node.attr


def calls(block: str) -> Iterator[tuple[Any, list[str]]]:
    """What a Python block calls of tutelage, each with the names of the arguments that it gives."""
    tree = ast.parse(block)
    names = {
        alias.asname or alias.name: getattr(importlib.import_module(node.module or ""), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tutelage"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = None
            if isinstance(node.func, ast.Name):
                called = names.get(node.func.id)
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                module = node.func.value.id
                owner = tutelage if module == "tutelage" else names.get(module)
                called = getattr(owner, node.func.attr) if owner is not None else None
            if called is not None:
                yield called, [word.arg for word in node.keywords if word.arg]


@each_page
def test_python_gives_arguments_that_exist(page: Path) -> None:
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        for called, given in calls(block):
            known = inspect.signature(called).parameters
            free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            assert free or [name for name in given if name not in known] == [], f"{page.name}: {called}"


def test_a_wrong_argument_would_be_seen() -> None:
    ((called, given),) = calls("import tutelage\ntutelage.distill(data='photos', epoch=3)")
    assert called is tutelage.distill
    assert [name for name in given if name not in inspect.signature(called).parameters] == ["epoch"]


@each_page
def test_overrides_and_yaml_blocks_are_valid(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in code(text):
        quoted = re.findall(r'"([a-z]+(?:\.[a-z_]+)+=[^"]+)"', line)
        plain = re.sub(r'"[^"]*"', "", line)
        load_recipe(None, quoted + re.findall(r"(?<![\w./-])[a-z]+(?:\.[a-z_]+)+=[^\s`;,]+", plain))
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        parse_recipe(yaml.safe_load(block))


def test_the_training_step_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = PYTHON.findall(README.read_text(encoding="utf-8"))[1]
    for text, smaller in (
        ("vit_b1", "vit_b0@none"),
        ("vit_b3", "vit_b1@none"),
        ("(8, 3", "(2, 3"),
        ("(8,)", "(2,)"),
    ):
        assert text in block
        block = block.replace(text, smaller)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert {"loss", "logits", "kl", "cross_entropy", "feature_mse"} == names["losses"].keys()
    assert (tmp_path / "student.pt").is_file()


def test_the_terms_in_the_readme_are_those_of_its_python_code() -> None:
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    terms = [repr(term) for term in terms_of(parse_recipe(yaml.safe_load(block)).loss)]
    calls = [
        eval(call, vars(losses))  # the page's own text
        for call in re.findall(r"^ {8}(\w+\(.*\)),$", README.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(calls) == 3
    assert [repr(term) for term in calls] == terms


@each_page
def test_files_functions_and_tests_that_are_named_exist(page: Path) -> None:
    """`tests/FILE.py`, `tests/FILE.py::TEST` (which may end in ...), and `MODULE.py:NAME` below src/tutelage."""
    for word in code(page.read_text(encoding="utf-8")):
        if found := re.fullmatch(r"((?:[\w.]+/)*\w+\.py)(?:(::?)([\w.]+?)(\.\.\.)?)?", word):
            path, colons, name, cut = found.groups()
            places = [place / path for place in (ROOT, ROOT / "src" / "tutelage") if (place / path).is_file()]
            if colons is None and "/" not in path:
                continue  # a file of the reader's own, such as train.py
            assert places, f"{page.name}: {word}"
            text = places[0].read_text(encoding="utf-8")
            for part in (name or "").split("."):
                end = "" if cut else r"\b"
                assert not part or re.search(rf"\b(def|class) {part}{end}", text), f"{page.name}: {word}"


def test_the_references_have_every_key_and_every_option(pages: Any) -> None:
    keys = "\n".join(pages.recipe_keys())
    assert [key for key in recipe_keys() if f"### `{key}`" not in keys and f"## {key}\n" not in keys] == []
    text = "\n".join(pages.commands())
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert parts.keys() == cli().keys()
    for command, options in cli().items():
        assert [o for o in options if o.startswith("-") and o not in parts[command]] == [], command
    for page, name in (("recipe-keys", "recipe keys"), ("commands", "commands")):
        assert f"<!-- {name}: made by docs/pages.py -->" in (ROOT / f"docs/{page}.md").read_text(
            encoding="utf-8"
        )


def test_the_python_page_has_every_public_name() -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    public = {f"tutelage.{name}" for name in tutelage.__all__} - {"tutelage.__version__"}
    assert sorted(named) == sorted(public | {"tutelage.losses"})


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[docs/deploy.md](docs/deploy.md)", "[From a student to a file](deploy.md)"),
        ("README.md", "[report](docs/report.png)", "[report](report.png)"),
        ("CHANGELOG.md", "[both](notebooks)", "[both](index.md#more)"),
        ("README.md", "[few.yaml](recipes/few-labels.yaml)", "[few.yaml](recipes.md#few-labels.yaml)"),
        ("docs/extending.md", "[gram](../examples/loss_package)", "[gram](examples.md#loss_package)"),
        ("docs/extending.md", "[In Python](../README.md#in-python)", "[In Python](index.md#in-python)"),
        (
            "docs/extending.md",
            "[paper](https://arxiv.org/abs/1911.00068)",
            "[paper](https://arxiv.org/abs/1911.00068)",
        ),
    ],
)
def test_links_point_to_pages_of_the_site(source: str, link: str, expected: str, pages: Any) -> None:
    assert pages.site_links(source, link) == expected


def findings() -> Iterator[str]:
    """The name of each finding of the diagnosis, as a pattern: what its code fills in may be any words."""
    for path in sorted((ROOT / "src/tutelage/pipeline/diagnose").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                name = node.args[0]
                for one in (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,):
                    assert isinstance(one, ast.Constant | ast.JoinedStr), f"{path.name}:{one.lineno}"
                    parts = one.values if isinstance(one, ast.JoinedStr) else [one]
                    yield "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts)


def test_each_finding_of_the_diagnosis_has_an_entry_in_troubleshooting() -> None:
    patterns = set(findings())
    assert {"overfitting", "gain over the start".replace(" ", r"\ ")} <= patterns
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert [p for p in sorted(patterns) if not any(re.fullmatch(p, entry) for entry in entries)] == []
    assert [entry for entry in entries if not any(re.fullmatch(p, entry) for p in patterns)] == []
