"""Several seeds: the same images, other trainings, pooled."""

from pathlib import Path

import numpy as np
import pytest

from tutelage.core.errors import WeakTeacher
from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import pooled
from tutelage.pipeline.run import begin
from tutelage.pipeline.seeds import distill_seeds


def test_two_seeds_train_apart_and_report_on_the_same_images(tiny: dict, tmp_path: Path) -> None:
    tiny |= {"control": False, "name": "seeds"}
    tiny["train"]["epochs"] = 1
    recipe = parse_recipe(tiny)
    run = begin(recipe, tmp_path, "test", seeds=2)
    result = distill_seeds(recipe, run, 2, Silent())
    one, other = (Run(run.path / f"seed-{seed}") for seed in (0, 1))
    assert one.student.read_bytes() != other.student.read_bytes()
    parts = [read_json(each.splits)["parts"]["test"]["digest"] for each in (one, other)]
    assert parts[0] == parts[1]
    tops = [row["top1"] for each in (one, other) for row in read_json(each.comparison)["rows"]][2::3]
    assert result["top1"]["distilled"]["mean"] == pytest.approx(np.mean(tops))
    assert result == read_json(run.seeds)
    assert read_json(one.speed) == read_json(other.speed)  # of one architecture: measured once
    assert not run.cache.exists()
    before = one.student.stat().st_mtime_ns
    distill_seeds(recipe, run, 2, Silent())
    assert one.student.stat().st_mtime_ns == before


def test_only_the_first_seed_is_stopped_by_a_weak_teacher(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def weak_from(call: int) -> None:
        def check(*_: object) -> None:
            asked.append(None)
            if len(asked) >= call:
                raise WeakTeacher("nothing to teach")

        monkeypatch.setattr("tutelage.pipeline.run.check_teacher", check)

    tiny |= {"control": False, "name": "seeds"}
    tiny["train"]["epochs"] = tiny["teacher"]["fit"]["epochs"] = 1
    tiny["data"]["limit"] = 64
    recipe = parse_recipe(tiny)
    run = begin(recipe, tmp_path, "test", seeds=2)
    weak_from(1)
    with pytest.raises(WeakTeacher):
        distill_seeds(recipe, run, 2, Silent())
    asked.clear()
    weak_from(2)
    assert "distilled" in distill_seeds(recipe, run, 2, Silent())["top1"]
    assert len(asked) == 2


def test_pooled_is_the_mean_over_trainings_with_an_interval_over_images() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.random((3, 400)) < 0.8, rng.random((3, 400)) < 0.7
    found = pooled(new, old)
    assert found["difference"] == pytest.approx(100 * (new.mean() - old.mean()))
    assert found["low"] < found["difference"] < found["high"]
    assert found["sd"] == pytest.approx((100 * (new.mean(1) - old.mean(1))).std(ddof=1))


def test_the_same_answers_repeated_are_no_further_evidence() -> None:
    """Three copies of one training are as unsure as the one."""
    rng = np.random.default_rng(1)
    new, old = rng.random((1, 400)) < 0.8, rng.random((1, 400)) < 0.7
    once, thrice = pooled(new, old), pooled(np.repeat(new, 3, 0), np.repeat(old, 3, 0))
    assert thrice["high"] - thrice["low"] == pytest.approx(once["high"] - once["low"], rel=0.05)
