"""Sets of pictures of scikit-learn: as its functions give them, and one line where they cannot be downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.utils import Bunch

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.base import open_source, parts_of
from tutelage.data.splits import make_splits

RNG = np.random.default_rng(0)


def test_faces_in_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 256, (40, 8, 8))
    bunch = Bunch(images=(pixels / 255).astype(np.float32), target=np.arange(40) // 10)
    monkeypatch.setattr("sklearn.datasets.fetch_olivetti_faces", lambda **_: bunch)
    images = open_source("sklearn:olivetti_faces")
    assert parts_of("sklearn:olivetti_faces") == ()
    assert images.classes == ("person 00", "person 01", "person 02", "person 03")
    assert images.labels is not None
    assert images.labels.tolist() == bunch.target.tolist()
    assert np.array_equal(np.asarray(images.image(11)), np.repeat(pixels[11, ..., None], 3, 2))
    splits = make_splits(DataRecipe(train="sklearn:olivetti_faces"))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 40


def test_faces_in_colour_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, asked = RNG.integers(0, 256, (4, 12, 9, 3)), {}

    def fetch(**arguments: object) -> Bunch:
        asked.update(arguments)
        return Bunch(images=pixels / 255, target=[1, 0, 1, 1], target_names=np.array(["Ana", "Bo"]))

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    images = open_source("sklearn:lfw_people")
    assert images.classes == ("Ana", "Bo")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1, 1]
    assert np.array_equal(np.asarray(images.image(3)), pixels[3])
    assert asked["color"] is True


def test_the_digits_are_those_of_the_kind_digits() -> None:
    one, other = open_source("sklearn:digits"), open_source("digits")
    assert (one.digest(), one.origin) == (other.digest(), other.origin)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            "sklearn:olivetti_faces",
            "it cannot be downloaded (.*); go online (about 4 MB), or copy that folder",
        ),
        ("sklearn:lfw_people", "the network is unreachable"),
        ("sklearn:olivetti", "no such data set; did you mean 'olivetti_faces'? There are digits, "),
        ("sklearn:olivetti_faces#val", "it is one set, so write sklearn:olivetti_faces"),
    ],
)
def test_one_line_where_it_cannot_be_had(
    spec: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets._base.urlretrieve", unreachable)
    with pytest.raises(TutelageError) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    for piece in expected.split(".*"):
        assert piece in str(caught.value)
