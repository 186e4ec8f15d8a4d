"""What is released: the wheel and the source distribution have what they need and nothing else, and the texts agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tutelage

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST = 3_000_000  # bytes of the source distribution; images or weights would be above it


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of both distributions, built without network access."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f"tutelage-{PROJECT['version']}.dist-info"
    own = {name for name in wheel.namelist() if not name.startswith(info)}
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sources = {path.relative_to(ROOT / "src").as_posix() for path in files}
    assert own == sources
    assert {
        "tutelage/py.typed",
        "tutelage/report/templates/main.html.j2",
        "tutelage/report/templates/page.css",
    } <= own
    others = {name.removeprefix(f"{info}/") for name in wheel.namelist()} - own
    assert others == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert "tutelage = tutelage.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_source_distribution_can_be_built_tested_and_read(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    assert path.stat().st_size < LARGEST
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    files = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "constraints.txt",
        "Makefile",
        "mkdocs.yml",
    }
    assert {name for name in names if "/" not in name} - {"pyproject.toml", "PKG-INFO", ".gitignore"} == files
    folders = {"src", "tests", "docs", "examples", "recipes", "notebooks", "benchmarks"}
    assert {name.partition("/")[0] for name in names if "/" in name} == folders
    heavy = (".jpg", ".JPEG", ".safetensors", ".pt", ".pth", ".onnx", ".npz", ".tar", ".gz", ".pyc")
    assert [name for name in names if name.endswith(heavy)] == []


def test_the_version_stands_once_and_is_repeated_rightly() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == tutelage.__version__ == PROJECT["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first
    assert first[1] == PROJECT["version"]


def test_the_licence_of_each_dependency_is_listed() -> None:
    text = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| [\w-]+ \|$", text, re.MULTILINE))
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    direct = {canonicalize_name(Requirement(line).name) for line in [*PROJECT["dependencies"], *extras]}
    assert direct - {"tutelage"} - listed.keys() == set()
    assert len(listed) > 2 * len(direct)
    for name, licence in listed.items():
        assert canonicalize_license_expression(licence) == licence, name
