"""A student and a teacher that know the digits, exported once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.helpers.fitted import fit
from tests.helpers.shared import common_folder, made_once

from tutelage.core.recipe import DataRecipe
from tutelage.data.splits import Splits, make_splits
from tutelage.deploy.export import DeployReport, export_model
from tutelage.models.registry import load_model
from tutelage.models.source import Model

pytest.importorskip("nncf", reason="needs the extra `deploy`")

DATA = DataRecipe(train="digits", limit=200, workers=0, val_fraction=0.2, test_fraction=0.3)


@dataclass(frozen=True)
class Exported:
    """What the tests look at."""

    report: DeployReport
    model: Model
    spec: str
    teacher: str
    splits: Splits
    predictions: list[str]

    @property
    def path(self) -> Path:
        return self.report.directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    spec, teacher, report, predictions = made_once(common_folder(tmp_path_factory), "exported", export)
    return Exported(report, load_model(spec), spec, teacher, make_splits(DATA), predictions)


def export(place: Path) -> tuple[str, str, DeployReport, list[str]]:
    """Fit both networks and export them; return their names, the report, and what was said."""
    splits = make_splits(DATA)
    spec = fit("test_efficientnet", splits.train, place / "student.safetensors", epochs=8)
    teacher = fit("test_resnet", splits.train, place / "teacher.safetensors", epochs=2)
    model, predictions = load_model(spec), list[str]()
    report = export_model(
        model,
        place / "deploy",
        calibration=splits.train,
        validation=splits.val,
        test=splits.test,
        teacher=load_model(teacher),
        max_drop=5,
        provenance={"run": "digits"},
        say=predictions.append,
    )
    return spec, teacher, report, predictions
