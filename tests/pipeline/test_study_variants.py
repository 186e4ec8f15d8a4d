"""Variants of a study over seeds: which trials are one variant, and a study of one seed that really trains a second."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import load_recipe
from tutelage.core.run_dir import Run
from tutelage.evaluation.roles import Role
from tutelage.pipeline.study.plan import load_study
from tutelage.pipeline.study.trials import Entry, Ranked, TopClass
from tutelage.pipeline.study.variants import by_variant
from tutelage.pipeline.study.worker import StudyFiles, run_study

IMAGES = 200


def trial(number: int, variant: str, seed: int, val: float, name: str | None = None) -> Ranked:
    """A finished trial whose models are right on images drawn at random."""
    rng = np.random.default_rng(number)
    roles = {role: rng.integers(0, 2, IMAGES) for role in (Role.DISTILLED, Role.START, Role.CONTROL)}
    test = {role: {"top1": 100 * float((said == 0).mean()), "nll": 1.0} for role, said in roles.items()}
    top = TopClass(np.arange(IMAGES).astype(str), np.zeros(IMAGES, np.int64), roles)
    entry = Entry(
        number, name or f"{variant}-seed-{seed}", {}, Run(Path(f"trials/{number}")), "done", of=variant
    )
    return Ranked(entry, {"top1": val, "nll": 1 - val / 100}, "last", test, False, False, top, seed)


def test_searched_trials_and_a_single_seed_are_no_variant_with_several_seeds() -> None:
    assert by_variant([trial(0, "a", 0, 90.0), trial(1, "b", 0, 80.0)], "top1") == []
    searched = [trial(number, "", 0, 90.0, name="search") for number in range(3)]
    assert by_variant(searched, "top1") == []


def test_a_study_of_one_seed_goes_on_with_two(tmp_path: Path, tiny: dict) -> None:
    tiny["train"]["epochs"] = tiny["teacher"]["fit"]["epochs"] = 1
    tiny["data"]["limit"] = 100
    path = tmp_path / "more.yaml"
    variants = [{"name": "warm"}, {"name": "hot", "loss.temperature": 4.0}]
    path.write_text(yaml.safe_dump({"base": tiny, "variants": variants}))
    run_study(load_study(path), tmp_path, Silent(), "test")
    files = StudyFiles(tmp_path / "more")
    before = {run.name: Run(run).student.stat().st_mtime_ns for run in files.trials.iterdir()}
    assert read_json(files.json)["variants"] == []

    found = run_study(load_study(path, seeds=2, against="warm"), tmp_path, Silent(), "test")
    seed = load_recipe(Run(files.trials / "000-warm").recipe).train.seed
    assert sorted(run.name for run in files.trials.iterdir()) == [
        "000-warm", "001-hot", f"002-warm-seed-{seed + 1}", f"003-hot-seed-{seed + 1}",
    ]  # fmt: skip
    assert {name: Run(files.trials / name).student.stat().st_mtime_ns for name in before} == before
    record = read_json(files.json)
    assert {one["name"]: one["seeds"] for one in record["variants"]} == {
        "warm": [seed, seed + 1],
        "hot": [seed, seed + 1],
    }
    hot = next(one for one in record["variants"] if one["name"] == "hot")
    each = {t["name"]: t["test_top1"] for t in record["trials"]}
    ours, theirs = ([each[name], each[f"{name}-seed-{seed + 1}"]] for name in ("hot", "warm"))
    assert hot["against"]["named"]["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert {t["variant"] for t in record["trials"]} == {"warm", "hot"}
    assert "over 2 seeds" in found.sentence()
    again = run_study(load_study(path), tmp_path, Silent(), "test")  # fewer seeds than before lose nothing
    assert len(again.done) == 4
