"""No test reaches the network: set before anything imports the hub's client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny models are faster on one thread, and sums keep their order

from pathlib import Path

import hypothesis
import pytest
import torch

# what lands must not hang on luck: new examples are searched for at home
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

torch.set_num_threads(1)

TINY = {
    "teacher": {
        "model": "test_resnet@none",
        "resolution": 32,
        "crop_pct": 1.0,
        "fit": {"epochs": 2, "lr": 3e-3},
    },
    "student": {"model": "test_efficientnet@none", "resolution": 32, "crop_pct": 1.0},
    "data": {"train": "digits", "limit": 240, "workers": 0},
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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The photographs beside the checkout; tests that use them are skipped where they are not."""
    place = Path(__file__).parents[2] / "shared" / "data"
    if not place.is_dir():
        pytest.skip(f"needs the photographs of {place}, which are not part of the project")
    return place
