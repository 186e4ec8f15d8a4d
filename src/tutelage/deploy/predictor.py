"""Classify images with a deployed directory. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.decode import SUFFIXES, decode, upright_rgb
from tutelage.data.input_spec import eval_pixels, normalised
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.runtime import REMEDY, has_runtime, open_session

Runtime = Literal["openvino", "onnxruntime"]
Precision = Literal["int8", "fp32"]
Picture: TypeAlias = str | Path | np.ndarray | Image.Image

# In order of preference. An int8 file is there only if it passed the checks, but ONNX Runtime is often slower with it.
FILES: tuple[tuple[str, Runtime, Precision], ...] = (
    ("model-int8.xml", "openvino", "int8"),
    ("model.xml", "openvino", "fp32"),
    ("model.onnx", "onnxruntime", "fp32"),
    ("model-int8.onnx", "onnxruntime", "int8"),
)


@dataclass(frozen=True)
class Guess:
    """One class of a prediction.

    Attributes:
        label: the line of the class in ``labels.txt``.
        class_id: the name of its folder, or its WordNet id.
        index: of its logit.
        probability: softmax, 0 to 1.
    """

    label: str
    class_id: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable first."""

    source: str
    guesses: tuple[Guess, ...]

    @property
    def label(self) -> str:
        """The label of the most probable class."""
        return self.guesses[0].label

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.guesses[0].probability

    def line(self) -> str:
        """One line for people: the image, and each class with its probability."""
        classes = ", ".join(f"{guess.label} {100 * guess.probability:.1f}%" for guess in self.guesses)
        return f"{self.source}: {classes}"

    def json(self) -> str:
        """One line for programs: the same as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


class Predictor:
    """A deployed model.

    Example:
        >>> predictor = Predictor("runs/pets/deploy")
        >>> predictor("cat.jpg")[0].label
        'Siamese'

    Args:
        directory: a directory that ``tutelage export`` wrote.
        runtime: ``openvino`` or ``onnxruntime``; None: the installed one, OpenVINO if both are.
        precision: ``int8`` or ``fp32``; None: int8 with OpenVINO, fp32 with ONNX Runtime, if there are both files.

    Raises:
        TutelageError: a file is missing or damaged, or no runtime is installed.
    """

    def __init__(
        self, directory: str | Path, *, runtime: Runtime | None = None, precision: Precision | None = None
    ) -> None:
        folder = Path(directory)
        if not folder.is_dir():
            raise TutelageError(f"{folder}: no such directory; use one that `tutelage export` wrote")
        self.manifest = Manifest.read(folder)
        self.file = _choose(folder, runtime, precision)
        self._session = open_session(self.file, batch=1)
        if self._session.num_classes != len(self.manifest.labels):
            raise TutelageError(
                f"{self.file}: gives {self._session.num_classes} logits, but labels.txt has "
                f"{len(self.manifest.labels)} lines; export again"
            )

    def __call__(self, pictures: Picture | Iterable[Picture], top: int = 5) -> list[Prediction]:
        """Classify files, folders (with all folders in them), uint8 arrays (H, W, 3) or (H, W), or PIL images.

        Raises:
            TutelageError: an image cannot be read.
        """
        return list(self.stream(pictures, top))

    def stream(self, pictures: Picture | Iterable[Picture], top: int = 5) -> Iterator[Prediction]:
        """As calling the predictor, but one image at a time."""
        for picture in _each(pictures):
            yield self._predict(picture, top)

    def logits(self, picture: Picture) -> np.ndarray:
        """The logits of one image, float32 (C,)."""
        spec = self.manifest.input_spec
        return self._session(normalised(eval_pixels(_load(picture), spec), spec)[None])[0]

    def _predict(self, picture: Picture, top: int) -> Prediction:
        probabilities = _softmax(self.logits(picture))
        best = np.argsort(-probabilities, kind="stable")[: max(1, top)]
        manifest = self.manifest
        guesses = (
            Guess(manifest.labels[i], manifest.class_ids[i], int(i), float(probabilities[i])) for i in best
        )
        return Prediction(_name(picture), tuple(guesses))


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The given files, and the image files in the given folders, sorted.

    Raises:
        TutelageError: a path does not exist, or a folder has no images.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise TutelageError(f"{path}: no such image or folder")
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise TutelageError(f"{path}: no images found; looked for {' '.join(sorted(SUFFIXES))}")
        yield from found


def _choose(folder: Path, runtime: Runtime | None, precision: Precision | None) -> Path:
    present = [entry for entry in FILES if (folder / entry[0]).is_file()]
    wanted = [e for e in present if runtime in (None, e[1]) and precision in (None, e[2])]
    if not wanted:
        names = ", ".join(name for name, _, _ in present) or "no model file"
        asked = " ".join(filter(None, (runtime, precision))) or "any runtime"
        raise TutelageError(f"{folder}: has {names}, and none for {asked}; export again")
    for name, _, _ in wanted:
        if has_runtime(Path(name).suffix):
            return folder / name
    raise TutelageError(f"{folder}: {' or '.join(sorted({e[1] for e in wanted}))} is not installed; {REMEDY}")


def _each(pictures: Picture | Iterable[Picture]) -> Iterator[Picture]:
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        yield from pictures
    elif isinstance(pictures, np.ndarray | Image.Image):
        yield pictures
    elif isinstance(pictures, str | Path):
        yield from find_images([pictures])
    else:
        for picture in pictures:
            yield from _each(picture)


def _load(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return upright_rgb(_from_array(picture))
    if isinstance(picture, Image.Image):
        return upright_rgb(picture.copy())  # a copy, since it is rotated in place
    return decode(Path(picture), str(picture))


def _from_array(array: np.ndarray) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise TutelageError(
            f"array of {array.dtype} {array.shape}: give uint8 pixels, (height, width, 3) or (height, width)"
        )
    return Image.fromarray(array)


def _name(picture: Picture) -> str:
    if isinstance(picture, np.ndarray):
        return "array"
    return getattr(picture, "filename", "") or "image" if isinstance(picture, Image.Image) else str(picture)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
