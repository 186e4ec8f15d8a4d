"""The fine-tuning for int8: what it changes, what it does not, and that a stopped one ends alike."""

import shutil
from pathlib import Path

import pytest
import torch

from tutelage.core.recipe import load_recipe
from tutelage.core.run_dir import Run
from tutelage.deploy.qad.tune import Tuned, Tuner
from tutelage.deploy.qad.words import QAD, QAT
from tutelage.models.kept import kept_student

pytest.importorskip("nncf", reason="needs the extra `deploy`")


class Killed(BaseException):
    """Nothing in the program catches it, so that nothing is written when it comes, as with SIGKILL."""


def in_copy(tuner: Tuner, place: Path) -> Tuner:
    """The same tuner for a copy of its run."""
    shutil.copytree(tuner.run.path, place, ignore=shutil.ignore_patterns("checkpoints"))
    run = Run(place)
    student = kept_student(run, load_recipe(run.recipe))
    return Tuner(run, tuner.recipe, student, tuner.splits, tuner.settings, tuner.calibration)


def same(one: Tuned, other: Tuned) -> bool:
    states = one.model.module.state_dict(), other.model.module.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_student_and_control_are_trained_and_batchnorm_is_not(tuner: Tuner, tmp_path: Path) -> None:
    mine = in_copy(tuner, tmp_path / "run")
    mine.settings = mine.settings.model_copy(update={"epochs": 1})
    before = {name: tensor.clone() for name, tensor in mine.student.module.state_dict().items()}
    found = {one.name: one for one in mine.tuned()}
    assert list(found) == [QAD, QAT]
    assert not same(found[QAD], found[QAT])
    for one in found.values():
        state = one.model.module.state_dict()
        changed = {name for name in before if not torch.equal(before[name], state[name])}
        assert any(name.endswith("conv.weight") for name in changed)
        assert not any("running_" in name or "num_batches" in name for name in changed)
        assert len(one.rows) == mine.settings.epochs
        assert all(torch.equal(before[name], mine.student.module.state_dict()[name]) for name in before)
    # as many steps of the same size, so that the teacher is the only difference
    assert [row["step"] for row in found[QAD].rows] == [row["step"] for row in found[QAT].rows]


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tuner: Tuner, tmp_path: Path) -> None:
    unbroken = in_copy(tuner, tmp_path / "unbroken").tuned()
    broken = in_copy(tuner, tmp_path / "broken")
    for killed_in in ("QAD: epoch 1", "QAD: epoch 2", "QAT: epoch 1"):

        def say(line: str, where: str = killed_in) -> None:
            if line.startswith(where):
                raise Killed

        broken.say = say
        with pytest.raises(Killed):
            broken.tuned()
    broken.say = lambda line: None
    resumed = broken.tuned()
    assert [one.name for one in resumed] == [one.name for one in unbroken]
    assert all(same(one, other) for one, other in zip(resumed, unbroken, strict=True))
    assert [one.rows[-1]["val"] for one in resumed] == [one.rows[-1]["val"] for one in unbroken]


@pytest.mark.slow
def test_other_settings_do_not_continue_the_checkpoint(tuner: Tuner, tmp_path: Path) -> None:
    mine = in_copy(tuner, tmp_path / "run")
    mine.settings = mine.settings.model_copy(update={"epochs": 1})
    first = mine.tuned()
    mine.settings = mine.settings.model_copy(update={"lr": 1e-5})
    second = mine.tuned()
    assert not same(first[0], second[0])
    assert len(list(mine.run.checkpoints.glob("qad-*.safetensors"))) == 2
