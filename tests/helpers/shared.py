"""What several files of tests look at and none changes is made once for all processes of pytest-xdist."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

T = TypeVar("T")


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a temporary folder that is the same in all processes of a session of tests."""
    own = factory.getbasetemp()  # pytest-xdist gives each process a folder of its own in that of the session
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(folder: Path, name: str, make: Callable[[Path], T]) -> T:
    """Return what `make` gives for an empty folder; other processes wait for it and read it from a file.

    Args:
        folder: of all processes, see `common_folder`.
        name: of the folder that is made in it.
        make: gives something that can be pickled, in which the place of the folder may stand.
    """
    kept = folder / f"{name}.pickle"
    with FileLock(folder / f"{name}.lock"):
        if not kept.exists():
            (folder / name).mkdir()
            kept.write_bytes(pickle.dumps(make(folder / name)))
    return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]
