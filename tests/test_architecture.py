"""The rooms of the package: imports point down, and every file has one subject."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grimp
import pytest
from tests.conftest import LONGEST

ROOMS = ("cli", "api", "pipeline", "report", "deploy", "distillation", "evaluation", "models", "data", "core")
SOURCE = Path(__file__).parents[1] / "src" / "tutelage"
TESTS = Path(__file__).parent
MOST_LINES = 400


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("tutelage")


def test_no_folder_imports_upwards(graph: grimp.ImportGraph) -> None:
    layers = tuple(f"tutelage.{room}" for room in ROOMS if f"tutelage.{room}" in graph.modules)
    assert len(layers) >= 9
    broken = graph.find_illegal_dependencies_for_layers(layers=layers)
    assert not broken, [f"{one.importer} imports {one.imported}" for one in broken]


def test_every_module_lies_in_a_room(graph: grimp.ImportGraph) -> None:
    rooms = {module.split(".")[1] for module in graph.modules if "." in module}
    assert rooms <= {*ROOMS, "losses", "__main__"}  # `losses` is the public name of distillation's


def test_nothing_imports_in_a_circle(graph: grimp.ImportGraph) -> None:
    packages = [module for module in graph.modules if graph.find_children(module)]
    assert len(packages) > len(ROOMS) - 2
    assert {name: found for name in packages if (found := graph.nominate_cycle_breakers(name))} == {}


def test_no_file_is_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path.relative_to(SOURCE)): n for path, n in lines.items() if n > MOST_LINES} == {}


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their names alone, since their folders are no packages, and the second one fails."""
    names = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, number in names.items() if number > 1] == []
    assert not list(TESTS.rglob("__init__.py"))
    assert set(LONGEST) <= set(names)
