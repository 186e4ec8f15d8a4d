"""No test reaches the network: set before anything imports the hub's client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny models are faster on one thread, and sums keep their order

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import torch

# what lands must not hang on luck: new examples are searched for at home
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

torch.set_num_threads(1)


# the files that take longest, longest first
LONGEST = (
    "test_docs_in_full.py",  # the first two are slow tests
    "test_auto_values.py",
    "test_resume.py",
    "test_processes.py",
    "test_export.py",
    "test_teacher_kinds.py",
    "test_lr_range.py",
    "test_batch_size.py",
    "test_notebooks.py",
    "test_study.py",
    "test_teacher.py",
    "test_run.py",
    "test_memory_runs_out.py",
    "test_predictor.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that no process is left with one of them when the others have ended."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Keep what was imported out of garbage collections: a run asks for several, which took 0.5 to 1 s each."""
    gc.collect()
    gc.freeze()


TINY = {
    "teacher": {
        "model": "test_resnet@none",
        "resolution": 32,
        "crop_pct": 1.0,
        "fit": {"epochs": 2, "lr": 3e-3},
    },
    "student": {"model": "test_efficientnet@none", "resolution": 32, "crop_pct": 1.0},
    "data": {"train": "digits", "limit": 240, "workers": 0, "val_fraction": 0.1},
    "view": {"crop_scale": [0.7, 1.0], "flip": 0.0},
    "loss": {"temperature": 2.0, "label_weight": 0.1},
    "train": {"epochs": 2, "lr": 3e-3, "batch_size": 32, "precision": "fp32", "warmup_epochs": 0},
    "preflight": {"allow_weak_teacher": True},
}


@pytest.fixture
def tiny() -> dict:
    """A recipe as a dictionary: real digits, tiny random networks, seconds to run. A fresh copy each time."""
    import copy

    return copy.deepcopy(TINY)


@pytest.fixture(autouse=True, scope="session")
def few_rounds() -> Iterator[None]:
    """Rows are timed in one round instead of 15: how long a network takes is not what is tested."""
    from tutelage.evaluation import rows
    from tutelage.evaluation.latency import Latency, alternating_latency

    def quick(calls: Mapping[str, Callable[[], object]], **_: object) -> dict[str, Latency]:
        return alternating_latency(calls, rounds=1, warmup=1, settling=0, burst=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "alternating_latency", quick)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The photographs beside the checkout; tests that use them are skipped where they are not."""
    place = Path(__file__).parents[2] / "shared" / "data"
    if not place.is_dir():
        pytest.skip(f"needs the photographs of {place}, which are not part of the project")
    return place
