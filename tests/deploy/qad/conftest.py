"""A finished run of two tiny networks on the digits."""

from typing import Any

import pytest
from tests.helpers.fitted import fit

from tutelage.core.components import QadRecipe
from tutelage.core.files import write_text
from tutelage.core.recipe import dump_recipe, load_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.splits import Splits, make_splits
from tutelage.deploy.build import CALIBRATION, pictures
from tutelage.deploy.qad.tune import Tuner
from tutelage.models.kept import kept_student
from tutelage.models.source import Model

RECIPE: dict[str, Any] = {
    "teacher": {"model": "test_resnet@none", "resolution": 32},
    "student": {"model": "test_efficientnet@none", "resolution": 32},
    "data": {"train": "digits", "limit": 200, "workers": 0, "val_fraction": 0.2, "test_fraction": 0.3},
    "view": {"crop_scale": [0.7, 1.0], "flip": 0.0, "mixup": 0.2},
    "train": {"batch_size": 32},
}


@pytest.fixture(scope="session")
def qad_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With a student and a teacher."""
    recipe = parse_recipe(RECIPE)
    run = Run(tmp_path_factory.mktemp("qad") / "digits")
    run.path.mkdir()
    write_text(run.recipe, dump_recipe(recipe))
    splits = make_splits(recipe.data)
    fit("test_resnet", splits.train, run.teacher, epochs=4)
    fit("test_efficientnet", splits.train, run.student, epochs=8, seed=1)
    return run


@pytest.fixture(scope="session")
def splits(qad_run: Run) -> Splits:
    return make_splits(load_recipe(qad_run.recipe).data)


@pytest.fixture
def student(qad_run: Run) -> Model:
    return kept_student(qad_run, load_recipe(qad_run.recipe))


@pytest.fixture
def tuner(qad_run: Run, student: Model, splits: Splits) -> Tuner:
    pixels = pictures(student, splits.train, CALIBRATION).pixels
    settings = QadRecipe(epochs=2, lr=1e-3)
    return Tuner(qad_run, load_recipe(qad_run.recipe), student, splits, settings, pixels)
