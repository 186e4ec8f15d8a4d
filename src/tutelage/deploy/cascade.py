"""The threshold of a run's cascade, in its deployed directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.core.files import digest, read_json
from tutelage.core.run_dir import Run
from tutelage.deploy.card import write_card
from tutelage.deploy.manifest import PREPROCESS, REPORT, Manifest


def add_threshold(run: Run, directory: Path) -> None:
    """Write the threshold that `tutelage cascade` chose for the run's student into a deployed directory and its card.

    Nothing happens where there is no directory, or no threshold for this student.
    """
    if not (directory / PREPROCESS).is_file() or not run.cascade.exists():
        return
    found = read_json(run.cascade)
    if found["student"] != digest(run.student)["sha256"]:  # it was trained further since
        return
    manifest = replace(Manifest.read(directory), cascade=threshold_record(found))
    write_card(directory, manifest, read_json(directory / REPORT))
    manifest.write(directory)


def threshold_record(found: dict[str, Any]) -> dict[str, Any]:
    """What a deployed directory keeps of ``cascade.json``."""
    test = found["test"]
    return {
        "threshold": found["threshold"],
        "agreement": found["agreement"],
        "level": found["level"],
        "teacher": found["teacher"],
        "val": {key: found["chosen"][key] for key in ("answered", "agreed", "bound")}
        | {"n": found["val"]["n"]},
        "test": {
            key: test[key]
            for key in ("n", "coverage", "agreement", "agreement_low", "agreement_high", "top1")
        },
    }
