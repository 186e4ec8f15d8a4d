"""The record files of a run that have a format of their own, each read and written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutelage.core.files import read_jsonl, write_text


def write_stage_metrics(path: Path, stage: str, rows: list[dict[str, Any]]) -> None:
    """Put a stage's rows, one an epoch, into ``metrics.jsonl``, in the place of those that are there.

    Args:
        path: of ``metrics.jsonl``.
        stage: its name.
        rows: of all of its epochs so far.
    """
    found = list(read_jsonl(path))
    place = next((i for i, row in enumerate(found) if row.get("stage") == stage), len(found))
    before, after = ([r for r in part if r.get("stage") != stage] for part in (found[:place], found[place:]))
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in [*before, *rows, *after])
    present = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if present != text:
        write_text(path, text)
