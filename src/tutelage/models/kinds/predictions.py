"""Stored answers as a teacher: ``predictions:scores.parquet``, a probability or logit of each class for each image."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import digest
from tutelage.data.classes import map_classes
from tutelage.data.input_spec import IdInput
from tutelage.data.sources.tree import listed
from tutelage.data.subset import Subset
from tutelage.models.kinds.names import split_settings
from tutelage.models.kinds.scores import read_scores
from tutelage.models.source import Model

SETTINGS = ("image", "output")
ALMOST = 1e-2  # of a sum of probabilities to 1: tables are rounded to a few digits
LEAST = 1e-12  # of a probability, whose logarithm is the logit


@dataclass
class Answers:
    """The rows of a file. Copies of a network share them.

    Attributes:
        logits: (N, C) float32; the file's own numbers until the data's classes are known.
        row_of: the row of each image of a run, by its `IdInput.pixels`; empty before the run's images are known.
    """

    logits: Tensor
    row_of: dict[bytes, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> Answers:
        return self


class AnswerNetwork(nn.Module):
    """Hashes of the images' names (B, 3, 8, 1), see `IdInput`, to stored logits (B, C).

    Its only state is the digest of the file and of the classes taken from it, so that targets are cached by these.

    Args:
        spec: what the user wrote.
        answers: the rows.
        content: SHA-256 of the file and the classes.
    """

    content: Tensor

    def __init__(self, spec: str, answers: Answers, content: bytes) -> None:
        super().__init__()
        self.spec, self.answers = spec, answers
        self.register_buffer("content", torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        """Look the images up.

        Raises:
            TutelageError: one of them is none of the run's images, or is no image's name.
        """
        pixels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        names = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        try:
            rows = [self.answers.row_of[name.tobytes()] for name in names]
        except KeyError:
            raise TutelageError(
                f"{self.spec}: its answers are stored by image, so that it can only be the teacher of a run "
                "(tutelage distill) whose images it has rows for"
            ) from None
        return self.answers.logits[rows].to(images.device)


@dataclass(frozen=True)
class StoredModel(Model):
    """A model whose answers are stored by image.

    Attributes:
        images: the file's names of the images, in the order of its rows.
        output: ``probabilities`` or ``logits``; None: the numbers of the data's classes tell.
        ready: whether the answers are logits of the data's classes, and no longer the columns of the file.
    """

    images: tuple[str, ...] = field(kw_only=True)
    output: str | None = field(kw_only=True)
    ready: bool = field(default=False, kw_only=True)

    def recognised(self, classes: Sequence[str]) -> Model:
        """The model with the columns of the data's classes alone, where it has all of them.

        Raises:
            TutelageError: their numbers may be probabilities or logits.
        """
        index = map_classes(classes, self.class_ids) if classes else None
        if index is None or self.class_ids is None or self.ready:
            return self
        rest = [name for place, name in enumerate(self.class_ids) if place not in set(index.tolist())]
        answers = self._network().answers
        logits, kind = _logits(self.spec, answers.logits[:, torch.from_numpy(index)], self.output, not rest)
        left_out = f", without {listed(rest)}, no class of the data" if rest else ""
        content = hashlib.sha256(self._content() + json.dumps([kind, *classes]).encode()).digest()
        return replace(
            self,
            module=AnswerNetwork(self.spec, Answers(logits, answers.row_of), content).eval(),
            class_ids=tuple(classes),
            head_size=len(classes),
            origin=f"{kind} of {len(self.images):,} images{left_out}",
            ready=True,
        )

    def for_images(self, parts: Mapping[str, Subset]) -> Model:
        """The model that knows the row of each image.

        The row of an image is the one with its id or with the longest end of its path: ``cat/1.jpg`` or ``1.jpg``.

        Raises:
            TutelageError: an image has no row, or one row is that of several images.
        """
        rows = {name: row for row, name in enumerate(self.images)}
        found: dict[str, int] = {}
        missing: dict[str, list[str]] = {}
        for role, part in parts.items():
            for position in range(len(part)):
                name = part.full_name(position)
                row = _row(rows, part.id(position), name)
                if row is None:
                    missing.setdefault(role, []).append(part.id(position))
                else:
                    found[name] = row
        if missing:
            raise self._lacks(missing, sum(map(len, parts.values())))
        self._check_single(found)
        spec = self.input_spec
        assert isinstance(spec, IdInput)
        row_of = {spec.pixels(name).tobytes(): row for name, row in found.items()}
        answers = Answers(self._network().answers.logits, row_of)
        return replace(self, module=AnswerNetwork(self.spec, answers, self._content()).eval())

    def _lacks(self, missing: Mapping[str, list[str]], images: int) -> TutelageError:
        counts = ", ".join(f"{len(ids):,} of {role}" for role, ids in missing.items())
        first = listed([name for ids in missing.values() for name in ids])
        return TutelageError(
            f"{self.spec}: has no row for {sum(map(len, missing.values())):,} of the run's {images:,} images "
            f"({counts}): {first}; its rows are named like {self.images[0]!r}: add rows, named by the path below the "
            "data's folder, or leave these images out of the data"
        )

    def _check_single(self, found: Mapping[str, int]) -> None:
        """Refuse a row that several images take, such as ``1.jpg`` for cat/1.jpg and dog/1.jpg."""
        counts = Counter(found.values())
        if not counts or counts.most_common(1)[0][1] == 1:
            return
        row = counts.most_common(1)[0][0]
        names = [name for name, own in found.items() if own == row]
        raise TutelageError(
            f"{self.spec}: its row {self.images[row]!r} is that of {len(names)} images ({listed(names)}); name each "
            "row by the path of its image, such as cat/1.jpg"
        )

    def _content(self) -> bytes:
        return bytes(self._network().content.tolist())

    def _network(self) -> AnswerNetwork:
        assert isinstance(self.module, AnswerNetwork)
        return self.module

    def with_head(self, classes: Sequence[str] | int) -> Model:
        """Refuse: a file gets no new classes.

        Raises:
            TutelageError: always.
        """
        own = self.class_ids or ()
        wanted = () if isinstance(classes, int) else tuple(classes)
        missing = [name for name in wanted if map_classes([name], own) is None]
        if not missing:
            raise TutelageError(
                f"{self.spec}: its answers are stored and cannot be fitted; leave teacher.fit out"
            )
        raise TutelageError(
            f"{self.spec}: has no column for {len(missing)} of the data's {len(wanted)} classes ({listed(missing)}); "
            f"its columns are {listed(own)}: name a column by each class of the data"
        )

    def at(self, resolution: int) -> Model:
        """Refuse: no image is looked at.

        Raises:
            TutelageError: always.
        """
        raise TutelageError(
            f"{self.spec}: its answers are stored, so that it has no resolution; leave it out"
        )


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load stored answers from a CSV, Parquet or NumPy (.npz) file.

    Raises:
        TutelageError: the file is missing or damaged, has no column of images or fewer than two classes, names an image
            or a class twice, or holds what is neither probabilities nor logits.
    """
    spec = f"predictions:{where}"
    name, settings = split_settings(where, SETTINGS)
    path = Path(name).expanduser()
    if not path.is_file():
        raise TutelageError(
            f"{spec}: there is no file {path}; write predictions:FILE, such as predictions:scores.csv"
        )
    scores = read_scores(path, None if (column := settings.get("image")) is None else str(column))
    for what, names in (("image", scores.images), ("class", scores.classes)):
        again = [one for one, count in Counter(names).items() if count > 1]
        if again:
            raise TutelageError(f"{path}: names the {what} {again[0]!r} twice; give each {what} once")
    if len(scores.classes) < 2 or not scores.images:
        raise TutelageError(
            f"{path}: has {len(scores.images):,} images and {len(scores.classes)} classes, and needs two classes or "
            "more: a row for each image, and a column of numbers for each class"
        )
    wrong = ~np.isfinite(scores.values).all(1)
    if wrong.any():
        image = scores.images[int(wrong.argmax())]
        raise TutelageError(f"{path}: the row of {image!r} has a cell without a number; fill it in")
    output = settings.get("output", scores.output)
    if output not in {None, "probabilities", "logits"}:
        raise TutelageError(f"{spec}: output={output}: use output=probabilities or output=logits")
    content = json.dumps([digest(path)["sha256"], output, settings.get("image")]).encode()
    answers = Answers(torch.from_numpy(scores.values))
    return StoredModel(
        spec=spec,
        name=f"predictions:{path.name}",
        module=AnswerNetwork(spec, answers, hashlib.sha256(content).digest()).eval(),
        input_spec=IdInput(),
        class_ids=scores.classes,
        class_names=None,
        origin=f"file {path}",
        pretrained=True,
        head_size=len(scores.classes),
        images=scores.images,
        output=None if output is None else str(output),
    )


def _logits(spec: str, values: Tensor, output: str | None, all_classes: bool) -> tuple[Tensor, str]:
    """Return the logits (N, C) of some columns of a file, and what the columns hold in words.

    Args:
        spec: what the user wrote.
        values: (N, C) numbers.
        output: ``probabilities`` or ``logits``; None: numbers from 0 to 1 whose rows sum to 1 (to at most 1, where
            columns are left out) are probabilities.
        all_classes: no column is left out.

    Raises:
        TutelageError: the numbers may be one or the other, or are no probabilities.
    """
    sums = values.sum(1)
    between = bool((values >= 0).all() and (values <= 1 + ALMOST).all())
    fits = bool((sums <= 1 + ALMOST).all() and (not all_classes or (sums >= 1 - ALMOST).all()))
    if output is None and between and not fits:
        raise TutelageError(
            f"{spec}: its numbers are from 0 to 1, but not all rows sum to 1; write ?output=probabilities behind the "
            "name (each row is divided by its sum), or ?output=logits"
        )
    kind = output or ("probabilities" if between else "logits")
    if kind == "logits":
        return values, kind
    if (values < 0).any():
        raise TutelageError(f"{spec}: output=probabilities: some numbers are below 0; use output=logits")
    return values.clamp_min(LEAST).log(), kind


def _row(rows: Mapping[str, int], id: str, name: str) -> int | None:
    """The row of an image: by its id, or by the longest end of its full name that names a row."""
    if id in rows:
        return rows[id]
    parts = name.split("/")
    return next((rows[end] for k in range(len(parts)) if (end := "/".join(parts[k:])) in rows), None)
