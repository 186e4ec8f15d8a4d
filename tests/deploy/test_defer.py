"""`Predictor(..., defer_to=...)`: where the model is not sure, the teacher answers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.deploy.conftest import Exported
from tests.helpers.command_line import call

from tutelage.core.errors import TutelageError
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Prediction, Predictor

RECORD = {"threshold": 0.5, "agreement": 0.95}


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A deployed directory with a threshold, as `tutelage cascade` leaves it."""
    shutil.copytree(exported.path, tmp_path / "deploy")
    replace(Manifest.read(exported.path), cascade=RECORD).write(tmp_path / "deploy")
    return tmp_path / "deploy"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


PICTURES = [picture(seed) for seed in range(40)]


def sevens(asked: list[Any]) -> Any:
    def answer(given: Any) -> np.ndarray:
        asked.append(given)
        return np.eye(10)[7] * 9

    return answer


def test_only_pictures_below_the_threshold_are_handed_on(folder: Path) -> None:
    alone, asked = Predictor(folder)(PICTURES), list[Any]()
    found = Predictor(folder, defer_to=sevens(asked))(PICTURES)
    unsure = [one.probability < 0.5 for one in alone]
    assert 0 < sum(unsure) < len(unsure)
    assert [one.deferred for one in found] == unsure
    assert len(asked) == sum(unsure)
    for own, one in zip(alone, found, strict=True):
        assert one.label == ("7" if one.deferred else own.label)
        assert one == own or one.deferred


def test_the_threshold_can_be_given(exported: Exported) -> None:
    asked: list[Any] = []
    every = Predictor(exported.path, defer_to=sevens(asked), threshold=1.0)
    assert all(one.deferred for one in every(PICTURES[:3]))
    never = Predictor(exported.path, defer_to=sevens(asked), threshold=0.0)
    assert not any(one.deferred for one in never(PICTURES[:3]))
    assert len(asked) == 3


def test_a_predictor_or_a_prediction_answers_as_it_would_alone(folder: Path) -> None:
    teacher = Predictor(folder, precision="fp32")
    (one,) = Predictor(folder, defer_to=teacher, threshold=1.0)(PICTURES[0])
    (own,) = teacher(PICTURES[0])
    assert replace(one, deferred=False) == own
    ready = Prediction("mine", own.guesses)
    (given,) = Predictor(folder, defer_to=lambda _: ready, threshold=1.0)(PICTURES[0])
    assert given == Prediction("mine", own.guesses, deferred=True)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"defer_to": lambda _: np.zeros(10)}, "has no threshold to defer by; run `tutelage cascade RUN`"),
        ({"defer_to": lambda _: np.zeros(10), "threshold": 2}, "threshold=2: give a confidence from 0 to 1"),
        ({"threshold": 0.5}, "threshold=0.5: has no effect without defer_to"),
        ({"defer_to": 3, "threshold": 0.5}, "defer_to=3: give a Predictor, or a function"),
    ],
)
def test_what_cannot_be_a_cascade_is_refused(exported: Exported, options: Any, line: str) -> None:
    with pytest.raises(TutelageError) as raised:
        Predictor(exported.path, **options)
    assert line in str(raised.value)


def test_a_teacher_of_other_classes_is_refused(folder: Path, exported: Exported) -> None:
    other = Manifest.read(exported.path)
    replace(other, class_ids=other.class_ids[::-1]).write(folder)
    with pytest.raises(TutelageError) as raised:
        Predictor(exported.path, defer_to=Predictor(folder), threshold=0.5)
    assert "has other classes than" in str(raised.value)


@pytest.mark.parametrize("answer", [np.zeros(9), np.full(10, np.nan), [[0.0] * 10], 1.0])
def test_a_teachers_answer_of_another_shape_is_named(folder: Path, answer: Any) -> None:
    with pytest.raises(TutelageError) as raised:
        Predictor(folder, defer_to=lambda _: answer, threshold=1.0)(PICTURES[0])
    assert "return 10 finite logits" in str(raised.value)


def test_the_command_hands_on_too(
    folder: Path, exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    file = folder.parent / "one.png"
    Image.fromarray(PICTURES[0]).save(file)
    words = ["predict", str(folder), str(file), "--defer-to", str(exported.path), "--json"]
    assert call(*words, "--threshold", "1") == 0
    assert json.loads(capsys.readouterr().out)["deferred"] is True
    assert call(*words, "--threshold", "0") == 0
    assert "deferred" not in json.loads(capsys.readouterr().out)
    assert call("predict", str(folder), str(file), "--threshold", "0.5") == 2


def test_a_damaged_threshold_is_named(folder: Path) -> None:
    content = json.loads((folder / "preprocess.json").read_text())
    content["cascade"]["threshold"] = 7
    (folder / "preprocess.json").write_text(json.dumps(content))
    with pytest.raises(TutelageError) as raised:
        Predictor(folder)
    assert "cascade.threshold 7" in str(raised.value)
