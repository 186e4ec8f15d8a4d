"""A run with `data.exclude`: it names what it leaves out, and notices an edited list."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.heard import Heard

from tutelage.core.begun import where_it_began
from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.data.splits import make_splits
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.prepare import prepare


@pytest.fixture
def recipe(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    names = make_splits(parse_recipe(tiny).data).train.ids[:2]
    (tmp_path / "list.txt").write_text("\n".join(names))
    tiny["data"]["exclude"] = "list.txt"
    return parse_recipe(tiny)


def test_a_run_counts_and_names_what_it_leaves_out_and_notices_an_edited_list(
    recipe: Recipe, tmp_path: Path
) -> None:
    run, progress = begin(recipe, tmp_path / "runs", "test"), Heard()
    prepared = prepare(recipe, run, progress)
    first, second = (tmp_path / "list.txt").read_text().split()
    assert not {first, second} & {*prepared.splits.train.ids}
    assert f"data.exclude=list.txt: 2 images left out (2 of train): {first}, {second}" in progress.lines
    assert read_json(run.splits)["excluded"]["images"] == {"train": 2}
    (tmp_path / "list.txt").write_text(f"# the order and comments are free\n{second}  # why\n{first}\n")
    prepare(recipe, run, progress)
    (tmp_path / "list.txt").write_text(f"{first}\n")
    with pytest.raises(
        TutelageError, match=r"data\.exclude=list\.txt: the list has changed since the run began"
    ):
        prepare(recipe, run, progress)


def test_a_relative_list_is_found_from_another_directory(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(recipe, tmp_path / "runs", "test")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with where_it_began(run):
        assert make_splits(recipe.data).exclusion is not None
