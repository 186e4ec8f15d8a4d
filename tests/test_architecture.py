"""The rooms of the package: imports point down, and every file has one subject."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

ROOMS = ("cli", "api", "pipeline", "report", "deploy", "distillation", "evaluation", "models", "data", "core")
SOURCE = Path(__file__).parents[1] / "src" / "tutelage"
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
