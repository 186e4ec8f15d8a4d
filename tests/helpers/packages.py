"""Packages made visible as pip would make them, without pip: files and ``*.dist-info`` in a folder on the path."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def install_example(name: str, site: Path) -> None:
    """Install the package of a folder below ``examples/`` into `site`."""
    project = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())
    modules = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    for module in modules:
        shutil.copy(EXAMPLES / name / module, site)
    install(project["project"]["name"], project["project"]["entry-points"], site)


def install(name: str, points: Mapping[str, Mapping[str, str]], site: Path) -> None:
    """Install a package of these entry points, by group and name; its modules are put into `site` by the caller."""
    place = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    text = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items())
        for group, named in points.items()
    )
    (place / "entry_points.txt").write_text(text)
