"""A student and a teacher that know the digits, exported once."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.helpers.fitted import fit

from tutelage.core.recipe import DataRecipe
from tutelage.data.splits import Splits, make_splits
from tutelage.deploy.export import DeployReport, export_model
from tutelage.evaluation import rows as measure_rows
from tutelage.evaluation.latency import Latency
from tutelage.models.registry import load_model
from tutelage.models.source import Model

pytest.importorskip("nncf", reason="needs the extra `deploy`")

DATA = DataRecipe(train="digits", limit=200, workers=0, val_fraction=0.2, test_fraction=0.3)


def quick(calls: dict[str, Callable[[], object]], **_: object) -> dict[str, Latency]:
    """Times are not what is tested here."""
    took: dict[str, Latency] = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        took[name] = Latency(*[1000 * (time.perf_counter() - begin)] * 3, rounds=1)
    return took


@pytest.fixture(autouse=True, scope="session")
def few_rounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_rows, "alternating_latency", quick)
        yield


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
    place = tmp_path_factory.mktemp("exported")
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
    return Exported(report, model, spec, teacher, splits, predictions)
