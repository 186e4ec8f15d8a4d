"""The manifest of a deployed model: how to use it. It is in the model files, and in two files beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_json, write_text
from tutelage.data.input_spec import InputSpec

LABELS = "labels.txt"
PREPROCESS = "preprocess.json"
REPORT = "deploy.json"  # what was measured
FORMAT = 1  # of preprocess.json


@dataclass(frozen=True)
class Manifest:
    """How to prepare images for a deployed model, and what its logits mean.

    Attributes:
        model: name of the architecture.
        input_spec: how its images are prepared.
        labels: of the classes, for people, in the order of the logits.
        class_ids: of the same classes (folder names, WordNet ids).
        provenance: where the weights come from, and the versions of the packages that made the file.
        temperature: divides the logits before the softmax, so that the probabilities are calibrated.
        cascade: from which confidence (`threshold`) the model answers alone in a cascade, with the evidence, see
            `tutelage.deploy.cascade`; empty where none was chosen. It is not in the model files.
    """

    model: str
    input_spec: InputSpec
    labels: tuple[str, ...]
    class_ids: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 1.0
    cascade: Mapping[str, Any] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """As text for the metadata of a model file: lists with one entry per line, the rest as JSON."""
        return {
            "model": self.model,
            "input": json.dumps(self.input_spec.to_dict()),
            "labels": "\n".join(self.labels),
            "class_ids": "\n".join(self.class_ids),
            "temperature": str(self.temperature),
            "provenance": json.dumps(dict(self.provenance), ensure_ascii=False),
        }

    def write(self, directory: Path) -> None:
        """Write `LABELS` and then `PREPROCESS`: where the latter exists, the directory is complete."""
        write_text(directory / LABELS, "".join(f"{label}\n" for label in self.labels))
        content = {
            "format": FORMAT,
            "model": self.model,
            "input": self.input_spec.to_dict(),
            "layout": "float32 NCHW, upright RGB: (pixels / 255 - mean) / std",
            "output": "logits, one a line of labels.txt; divide by temperature before the softmax",
            "temperature": self.temperature,
            "class_ids": list(self.class_ids),
            "provenance": dict(self.provenance),
            **({"cascade": dict(self.cascade)} if self.cascade else {}),
        }
        write_json(directory / PREPROCESS, content)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest of a deployed directory.

        Raises:
            TutelageError: a file is missing or damaged.
        """
        content = _read_preprocess(directory / PREPROCESS)
        labels = tuple(_read(directory / LABELS).splitlines())
        try:
            manifest = cls(
                model=str(content["model"]),
                input_spec=InputSpec.from_dict(content["input"]),
                labels=labels,
                class_ids=tuple(map(str, content["class_ids"])),
                provenance=dict(content["provenance"]),
                temperature=float(content.get("temperature", 1.0)),  # older files have none
                cascade=dict(content.get("cascade") or {}),
            )
            if manifest.cascade and not 0 <= float(manifest.cascade["threshold"]) <= 1:
                raise ValueError(f"cascade.threshold {manifest.cascade['threshold']}")
            if not 0 < manifest.temperature < math.inf:
                raise ValueError(f"temperature {manifest.temperature}")
        except (KeyError, TypeError, ValueError) as error:
            raise TutelageError(f"{directory / PREPROCESS}: damaged ({error!r}); export again") from None
        if len(manifest.labels) != len(manifest.class_ids):
            raise TutelageError(
                f"{directory / LABELS}: has {len(manifest.labels)} lines, the model has "
                f"{len(manifest.class_ids)} classes; write one class a line"
            )
        return manifest


def one_line(label: str) -> str:
    """The name of a class without line breaks, so that it fits into one line of `LABELS`."""
    return " ".join(label.split()) or "?"


def _read_preprocess(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TutelageError(f"{path}: damaged ({error}); export again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TutelageError(f"{path}: of another version of tutelage (format is not {FORMAT}); export again")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TutelageError(f"{path}: missing; a deployed directory needs it, export again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(f"{path}: cannot be read ({error}); export again") from None
