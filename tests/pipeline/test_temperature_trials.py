"""The temperature that short trials choose, where the recipe leaves it to the run."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.evaluation.calibration import best_temperature, calibrated_nll
from tutelage.pipeline.choices import settings_of
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages import temperature_trials

TRIALS = "tutelage.pipeline.stages.temperature_trials"


def distilled(tiny: dict[str, Any], root: Path, memo: Path | None = None, **parts: Any) -> Run:
    recipe = parse_recipe(tiny | parts)
    run = begin(recipe, root, "test")
    distill(recipe, run, Silent(), memo=memo)
    return run


@pytest.fixture
def short(tiny: dict[str, Any]) -> dict[str, Any]:
    """A run of 24 steps without a control; with `SHARE` set to 1 its trials have as many."""
    tiny["train"] |= {"epochs": 3, "batch_size": 8, "lr": 1e-3}
    tiny["data"]["limit"] = 64
    tiny |= {"control": False, "loss": {"label_weight": 0.1}}
    return tiny


def test_the_better_one_on_val_is_taken_and_the_student_is_as_with_that_temperature(
    short: dict[str, Any], tmp_path: Path
) -> None:
    with patch(f"{TRIALS}.SHARE", 1):
        run = distilled(short | {"name": "auto"}, tmp_path, memo=tmp_path / "shared")
        trials = read_json(run.checkpoints / "temperature-trials.json")
        choice = read_json(run.choices)["loss.temperature"]
        assert trials["steps"] == 24
        assert trials["temperatures"][-1] == 4
        assert len(set(trials["nll"])) == 2  # the trials had different targets
        assert choice["value"] == trials["temperatures"][trials["nll"].index(min(trials["nll"]))]
        assert f"{min(trials['nll']):.3f} with {choice['value']:g}" in choice["why"]
        assert settings_of(run).loss.temperature == choice["value"]
        assert {row["stage"] for row in read_jsonl(run.metrics)}.isdisjoint({"temperature-4"})
        assert not list(run.checkpoints.glob("temperature-*.safetensors"))

        given = short["loss"] | {"temperature": choice["value"]}
        same = distilled(short | {"name": "given", "loss": given}, tmp_path, memo=tmp_path / "shared")
        assert not (same.checkpoints / "temperature-trials.json").exists()
        ours, theirs = load_file(run.student), load_file(same.student)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

        before = {path: path.read_bytes() for path in (run.choices, run.student)}
        with patch(f"{TRIALS}.train", side_effect=AssertionError("tried again")):
            distill(load_recipe(run.recipe), run, Silent(), memo=tmp_path / "shared")  # resumed
            assert {path: path.read_bytes() for path in before} == before
            other = distilled(short | {"name": "other"}, tmp_path, memo=tmp_path / "shared")
        assert read_json(other.choices)["loss.temperature"] == choice


@pytest.mark.parametrize(("nll", "at"), [([1.0, 0.9], 1), ([0.9, 1.0], 0), ([0.9, 0.9], 0)])
def test_the_lower_nll_decides(short: dict[str, Any], tmp_path: Path, nll: list[float], at: int) -> None:
    with patch(f"{TRIALS}.SHARE", 1), patch(f"{TRIALS}._nll_after_trial", side_effect=nll):
        run = distilled(short, tmp_path)
    trials = read_json(run.checkpoints / "temperature-trials.json")
    assert trials["nll"] == nll
    assert settings_of(run).loss.temperature == trials["temperatures"][at]


def recipe_of(loss: dict[str, Any], epochs: int = 20) -> Recipe:
    return parse_recipe({"loss": loss, "train": {"epochs": epochs, "batch_size": 64}})


def test_trials_are_short_and_only_for_the_temperature_of_kl() -> None:
    steps = temperature_trials.trial_steps
    assert steps(recipe_of({}), 64 * 1000) == 150
    assert steps(recipe_of({}), 64 * 40) == 100  # an eighth of 800
    assert steps(recipe_of({}), 64 * 7) == 0  # too short to tell
    for loss in ({"name": "dist"}, {"terms": [{"kl": {}}, {"cross_entropy": {}}]}, {"two_heads": True}):
        assert steps(recipe_of(loss), 64 * 1000) == 0


def test_a_run_that_an_older_version_has_distilled_keeps_its_temperature(
    short: dict[str, Any], tmp_path: Path
) -> None:
    run = distilled(short, tmp_path)  # too few steps for a trial
    before = run.choices.read_bytes()
    with patch(f"{TRIALS}.SHARE", 1):
        distill(load_recipe(run.recipe), run, Silent())
    assert run.choices.read_bytes() == before


def test_the_calibrated_nll_does_not_change_with_the_scale_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 5, generator=generator)
    labels = torch.multinomial((logits * 2).softmax(1), 1, generator=generator).flatten()
    labels[:3] = -1
    for scale in (0.5, 1.0, 3.0):
        assert calibrated_nll(logits * scale, labels) == pytest.approx(
            calibrated_nll(logits, labels), abs=1e-4
        )
    at_best = torch.nn.functional.cross_entropy(logits[3:] / best_temperature(logits, labels), labels[3:])
    assert calibrated_nll(logits, labels) == pytest.approx(float(at_best), abs=1e-4)
