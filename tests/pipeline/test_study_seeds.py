"""A study over several seeds: which trials it has, how they are ranked, and that it continues one of one seed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe
from tutelage.core.records import RunPredictions, TopClasses, write_predictions
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import paired, pooled
from tutelage.evaluation.roles import Role
from tutelage.pipeline.study.plan import load_study
from tutelage.pipeline.study.ranking import Ranking, ranking
from tutelage.pipeline.study.trials import Entry
from tutelage.pipeline.study.worker import run_study

IMAGES = 40
ROLES = (Role.DISTILLED, Role.START, Role.CONTROL)


def study(tmp_path: Path, **keys: object) -> Path:
    """A study of two variants; nothing of it is trained here."""
    base = {"data": {"train": f"folder:{tmp_path}/nowhere"}, "train": {"precision": "fp32", "seed": 3}}
    variants = [{"name": "one"}, {"name": "two", "train.lr": 0.1}]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"base": base, "variants": variants, **keys}))
    return path


def right(recipe: Recipe, role: str) -> np.ndarray:
    """Which test images a model of a trial has right: another draw for each variant, seed and model."""
    share = 0.9 if recipe.train.lr == 0.1 and role == Role.DISTILLED else 0.5
    draw = np.random.default_rng([recipe.train.seed, int(10 * share), ROLES.index(Role(role))])
    return draw.random(IMAGES) < share


def finish(recipe: Recipe, run: Run, *_: object, **__: object) -> None:
    """Write what a finished run has, in place of a training."""
    labels = np.arange(IMAGES) % 2
    found = {role: np.where(right(recipe, role), labels, 2) for role in ROLES}
    tops = {
        role: TopClasses(np.stack([top, (top + 1) % 3], 1), np.full((IMAGES, 2), 0.5))
        for role, top in found.items()
    }
    ids = np.array([f"{number:02d}" for number in range(IMAGES)])
    write_predictions(run.predictions, RunPredictions(ids, labels, ("x", "y", "z"), tops))
    top1 = {role: 100 * float(np.mean(top == labels)) for role, top in found.items()}
    val = {"top1": top1[Role.DISTILLED], "nll": 1.0}
    write_json(run.candidates, {"candidates": [{"name": "last", "kept": True, "val": val}]})
    rows = [{"role": str(role), "top1": top1[role], "nll": recipe.train.seed / 10} for role in ROLES]
    write_json(run.comparison, {"rows": rows})


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.pipeline.study.worker.distill", finish)


def run(path: Path, seeds: int | None = None, against: str | None = None) -> Ranking:
    return run_study(load_study(path, seeds=seeds, against=against), path.parent, Silent(), "test")


def test_a_study_of_one_seed_is_continued_with_more(tmp_path: Path) -> None:
    path = study(tmp_path)
    assert run(path).variants == []
    first = tmp_path / "small" / "trials" / "000-one" / "comparison.json"
    written = first.stat().st_mtime_ns
    found = run(path, seeds=3)
    assert sorted(d.name for d in (tmp_path / "small" / "trials").iterdir()) == [
        "000-one", "001-two", "002-one-seed-4", "003-two-seed-4", "004-one-seed-5", "005-two-seed-5",
    ]  # fmt: skip
    assert first.stat().st_mtime_ns == written
    assert {one.name: [t.seed for t in one.trials] for one in found.variants} == {
        "two": [3, 4, 5],
        "one": [3, 4, 5],
    }
    assert {t.entry.overrides.get("train.lr") for t in found.variants[0].trials} == {0.1}
    assert run(path).record() == found.record()  # fewer seeds leave out nothing that is finished


def test_a_part_of_the_variants_is_run_and_the_others_later(tmp_path: Path) -> None:
    path = study(tmp_path)
    some = load_study(path, seeds=2, only=["two"], against="one")
    assert [one.name for one in some.variants] == ["two", "two-seed-4"]
    assert {one.entry.name for one in run_study(some, tmp_path, Silent(), "test").done} == {
        "two",
        "two-seed-4",
    }
    found = run(path, seeds=2)
    assert sorted(d.name for d in (tmp_path / "small" / "trials").iterdir()) == [
        "000-two", "001-two-seed-4", "002-one", "003-one-seed-4",
    ]  # fmt: skip
    assert [one.name for one in found.variants] == ["two", "one"]
    with pytest.raises(
        TutelageError, match=r"--variant 'three': no variant has this name; there are one, two"
    ):
        load_study(path, only=["three"])


def test_the_differences_are_pooled_over_the_seeds(tmp_path: Path) -> None:
    path = study(tmp_path, seeds=3, against="one")
    best, other = run(path).variants
    plan = load_study(path)
    recipes = {
        name: [plan.recipe(changes | {"train.seed": seed}) for seed in (3, 4, 5)]
        for name, changes in (("one", {}), ("two", {"train.lr": 0.1}))
    }

    def stack(name: str, role: str) -> np.ndarray:
        return np.stack([right(recipe, role) for recipe in recipes[name]])

    def wanted(name: str, reference: str, role: str) -> dict[str, float]:
        return pooled(stack(name, Role.DISTILLED), stack(reference, role)) | {"seeds": 3}

    assert (best.name, other.name) == ("two", "one")
    for one in (best, other):
        assert vars(one.control) == wanted(one.name, one.name, Role.CONTROL)
        assert vars(one.start) == wanted(one.name, one.name, Role.START)
    assert vars(other.best) == wanted("one", "two", Role.DISTILLED)
    assert vars(best.named) == wanted("two", "one", Role.DISTILLED)
    assert best.best is other.named is None  # none is compared with itself
    each = 100 * stack("two", Role.DISTILLED).mean(1)
    assert best.test == f"{each.mean():.2f} ± {each.std(ddof=1):.2f}"
    assert best.nll == pytest.approx(0.4)


def test_files_and_terminal_have_the_variants(tmp_path: Path) -> None:
    found = run(study(tmp_path, seeds=2, against="one"))
    record = json.loads((tmp_path / "small" / "study.json").read_text())
    assert record["against"] == "one"
    assert (record["best"], record["sentence"]) == ("two", found.sentence())
    assert record["sentence"].startswith("Of 2 variants two is best on val over 2 seeds (top1 ")
    assert [(one["name"], one["seeds"]) for one in record["variants"]] == [("two", [3, 4]), ("one", [3, 4])]
    assert {(one["variant"], one["seed"]) for one in record["trials"]} == {
        (name, seed) for name in ("one", "two") for seed in (3, 4)
    }
    text = (tmp_path / "small" / "study.md").read_text()
    assert text.index("| Variant | Seeds |") < text.index("Each trial:") < text.index("| # | Trial |")
    assert "| Against best | Against one |" in text
    assert list(found.variant_columns()) == [
        "Variant",
        "Seeds",
        "Val",
        "Test",
        "Against control",
        "Against one",
    ]
    assert found.rich().row_count == 2
    assert "labels only " in found.note()


def test_a_variant_with_fewer_seeds_comes_last_and_is_compared_over_those_that_both_have(
    tmp_path: Path,
) -> None:
    path = study(tmp_path, seeds=2)
    run(path)
    entries = [
        Entry(number, name, {}, Run(tmp_path / "small" / "trials" / directory), "done", None, variant)
        for number, name, variant, directory in (
            (0, "one", "one", "000-one"),
            (1, "two", "two", "001-two"),
            (2, "one-seed-4", "one", "002-one-seed-4"),
        )
    ]
    reason = "no memory is left " * 20
    failed = Entry(3, "two-seed-4", {}, Run(tmp_path / "none"), "failed", reason, "two")
    found = ranking("s", "top1", [*entries, failed])
    best, last = found.variants
    assert (best.name, last.name, last.best.seeds) == ("one", "two", 1)  # though "two" is better on val
    assert last.val("top1") > best.val("top1")
    lines = list(zip(*found.variant_columns().values(), strict=True))
    assert (lines[-1][0], lines[-1][2], lines[-1][-1]) == ("two-seed-4", "failed", reason)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(found.rich())
    assert "Against best" in console.export_text()  # a long reason takes lines, not the room of other columns


def test_single_trials_are_held_against_the_named_variant(tmp_path: Path) -> None:
    found = run(study(tmp_path), against="one")
    two = next(one for one in found.done if one.entry.name == "two")
    one = next(one for one in found.done if one.entry.name == "one")
    tops = (two.top_class.by_role[Role.DISTILLED], one.top_class.by_role[Role.DISTILLED])
    assert two.named == paired(*tops, two.top_class.labels)
    assert one.named is None
    assert "Against one" in found.columns()
    assert "Against best" not in found.columns()
    assert {"Against one", "Against best"} <= found.columns(every=True).keys()
