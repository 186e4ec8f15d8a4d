"""Kinds of sources that installed packages add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.helpers.packages import EXAMPLES, install, install_example
from tests.helpers.refusals import source_refusal as refusal

from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.base import GROUP, open_source, parts_of
from tutelage.data.splits import make_splits


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    return place


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("val", 20)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "photos.npz", **arrays)
    return tmp_path / "photos.npz"


def test_the_example_package_opens_arrays(site: Path, archive: Path) -> None:
    assert "unknown kind" in refusal(f"npz:{archive}")  # until it is installed
    install_example("source_package", site)
    assert parts_of(f"npz:{archive}") == ("train", "val")
    images = open_source(f"npz:{archive}#val")
    assert (len(images), images.classes, images.image(3).size) == (20, ("0", "1"), (8, 6))
    with np.load(archive) as arrays:
        assert (np.asarray(images.image(3)) == arrays["val_images"][3]).all()
    splits = make_splits(DataRecipe(train=f"npz:{archive}"))
    assert (len(splits.train), len(splits.test)) == (32, 20)  # its val part reports; a fifth of train selects
    assert "no part 'test'; it has train, val" in refusal(f"npz:{archive}#test")
    assert "no such file" in refusal("npz:gone.npz")


def test_the_example_is_short() -> None:
    code = (EXAMPLES / "source_package" / "tutelage_npz.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) < 40


def test_an_unknown_kind_names_the_nearest_of_a_package_too(site: Path) -> None:
    install("shelf", {GROUP: {"shelf": "shelf"}}, site)
    assert "data source 'shelv:x': unknown kind; did you mean 'shelf'?" in refusal("shelv:x")
    assert "or shelf:WHERE" in refusal("shelv:x")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import nothing_like_it",
            "cannot be loaded (ModuleNotFoundError: No module named 'nothing_like_it')",
        ),
        ("1 / 0", "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("def load(where, part): ...", "names no `parts(where)` and `load(where, part)`"),
        ("def parts(where): return ()\ndef load(where, part): return [1]", "gave list, not an ImageSet"),
    ],
)
def test_a_package_that_does_not_work_gives_one_line(site: Path, code: str, line: str) -> None:
    name = f"broken{len(code)}"
    (site / f"{name}.py").write_text(code)
    install(name, {GROUP: {name: name}}, site)
    assert line in refusal(f"{name}:x")


def test_a_built_in_kind_wins_over_a_package(site: Path) -> None:
    install("other-digits", {GROUP: {"digits": "nowhere"}}, site)
    assert len(open_source("digits")) == 1797
