"""Small real runs on the digits, each made to have something wrong; made once a session, whoever asks first.

Their folder is that of all processes: `tests.helpers.shared.common_folder`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image
from tests.helpers.fitted import fit
from tests.helpers.shared import made_once

from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.splits import Splits, make_splits
from tutelage.pipeline.run import begin, distill

DIGITS = {"train": "digits", "val_fraction": 0.2, "test_fraction": 0.4, "workers": 0, "cache": False}
KINDS: dict[str, dict[str, str]] = {
    "gentle": {"train.lr": "1e-4"},
    "wild": {
        "train.lr": "0.03",
        "loss.temperature": "4",
        "selection.interpolate": "true",
        "selection.soup": "true",
    },
    "shuffled": {"loss.label_weight": "1", "loss.weight": "0.1", "train.lr": "3e-3", "train.epochs": "2"},
    "seen": {"loss.temperature": "4"},
    "drift": {"train.frozen_batchnorm": "false", "view.crop_scale": "[0.05,0.15]", "train.batch_size": "16"},
}


def real_run(kind: str, root: Path) -> Run:
    """One of `KINDS`, finished."""
    return Run(made_once(root, f"run-{kind}", lambda place: _run(kind, networks(root), place).path))


def _run(kind: str, models: dict[str, str], root: Path) -> Run:
    # the heads are what these runs are about, so that none is replaced by a linear probe that is better on val
    tree: dict[str, Any] = {
        "name": kind,
        "teacher": {
            "model": models["soft teacher" if kind == "seen" else "teacher"],
            "crop_pct": 1.0,
            "fit": "no",
        },
        "student": {
            "model": models["start that saw val" if kind == "seen" else "start"],
            "crop_pct": 1.0,
            "head_fit": "no",
        },
        "data": DIGITS if kind != "shuffled" else shuffled_folders(root),
        "view": {"crop_scale": [0.8, 1.0], "flip": 0.0},
        "loss": {"temperature": 1.0, "teacher_temperature": 1.0, "label_weight": 0.0},
        "train": {
            "epochs": 1,
            "lr": 1e-4,
            "batch_size": 32,
            "warmup_epochs": 0,
            "frozen_batchnorm": True,
            "ema": 0.9,
        }
        | {"precision": "fp32"},
        "preflight": {"allow_weak_teacher": True},
        "selection": {"interpolate": False, "soup": False},
        "control": False,
    }
    if kind == "drift":
        tree["teacher"]["model"] = models["start"]
    recipe = _with(tree, KINDS[kind])
    run = begin(recipe, root, "test")
    with quick():
        distill(recipe, run, Silent())
    return run


@contextmanager
def quick() -> Iterator[None]:
    """Without clocks and pages, which are not the subject."""
    with (
        patch("tutelage.pipeline.stages.measure.timed", lambda rows, *_, **__: list(rows)),
        patch("tutelage.pipeline.run.write_report"),
    ):
        yield


def networks(root: Path) -> dict[str, str]:
    """NAME@WEIGHTS of what teaches and what starts."""
    return made_once(root, "networks", _networks)


def _networks(place: Path) -> dict[str, str]:
    splits = digits()
    return {
        "teacher": fit("test_efficientnet", splits.train, place / "teacher.safetensors", epochs=6),
        "soft teacher": fit(
            "test_efficientnet", splits.train, place / "soft.safetensors", epochs=6, smoothing=0.3
        ),
        "start": fit("test_resnet", splits.train, place / "start.safetensors", epochs=2),
        "start that saw val": fit("test_resnet", splits.val, place / "saw.safetensors", epochs=4),
    }


@cache
def digits() -> Splits:
    """As all runs have them."""
    return make_splits(parse_recipe({"data": DIGITS}).data)


def shuffled_folders(root: Path) -> dict[str, Any]:
    """Image folders whose training labels mean nothing; those of val and test are right."""
    splits, rng = digits(), np.random.default_rng(0)
    for role in ("train", "val", "test"):
        subset = getattr(splits, role)
        labels = rng.permutation(subset.labels) if role == "train" else subset.labels
        for place in range(min(len(subset), 360)):
            folder = root / "folders" / role / str(labels[place])
            folder.mkdir(parents=True, exist_ok=True)
            image: Image.Image = subset.image(place)
            image.save(folder / f"{subset.id(place)}.png")
    return {"workers": 0, "cache": False} | {
        role: f"folder:{root / 'folders' / role}" for role in ("train", "val", "test")
    }


def _with(tree: dict[str, Any], overrides: dict[str, str]) -> Recipe:
    import yaml

    for key, value in overrides.items():
        subset, name = key.split(".")
        read = yaml.safe_load(value)
        tree[subset] = tree[subset] | {name: float(read) if isinstance(read, str) else read}
    return parse_recipe(tree)
