"""Classify images with a deployed directory. Does not import torch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, decode, upright_rgb
from tutelage.data.input_spec import eval_pixels, normalised
from tutelage.data.sources.tree import walk
from tutelage.deploy.manifest import PREPROCESS, Manifest
from tutelage.deploy.runtimes.base import Precision
from tutelage.deploy.runtimes.registry import RUNTIMES, open_session, preferred, runtime_of

Picture: TypeAlias = str | Path | np.ndarray | Image.Image
Errors = Literal["raise", "skip"]
Teacher: TypeAlias = Callable[[Picture], "Prediction | np.ndarray | Sequence[float]"]

GIVE = "give a path, a PIL image, or an array of uint8 pixels, (height, width, 3) or (height, width)"
_LOADING = Lock()  # PIL decodes an opened file at its first use, which two threads must not do at once


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
    """The most probable classes of one image, the most probable first.

    Attributes:
        source: path of the image, or what it is.
        guesses: its most probable classes.
        deferred: whether the model was not sure enough, so that ``defer_to`` answered.
    """

    source: str
    guesses: tuple[Guess, ...]
    deferred: bool = False

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
        return f"{self.source}: {classes}{' (teacher)' if self.deferred else ''}"

    def json(self) -> str:
        """One line for programs: the same as a JSON object, in ASCII, which every terminal and pipe can take.

        It has `deferred` where it is true.
        """
        return json.dumps({key: value for key, value in asdict(self).items() if key != "deferred" or value})


class Predictor:
    """A deployed model. Any number of threads may call one predictor at the same time.

    Example:
        >>> predictor = Predictor("runs/pets/deploy")
        >>> predictor("cat.jpg")[0].label
        'Siamese'

    Args:
        directory: a directory that ``tutelage export`` wrote, or a run that has one in ``deploy``.
        runtime: such as ``openvino`` or ``onnxruntime``; None: the first that is installed, OpenVINO if it is.
        precision: ``int8``, ``fp32`` or ``fp16``; None: int8 with OpenVINO, fp32 with ONNX Runtime, if both are there.
        defer_to: who answers where the model's confidence is below the threshold: another `Predictor` of the same
            classes, or a function that takes the picture and returns the logits (C,) of the classes in their order, or
            a `Prediction`. None: the model answers always.
        threshold: of the confidence, 0 to 1; None: the one that ``tutelage cascade`` chose.

    Raises:
        TutelageError: a file is missing or damaged, no runtime is installed, or there is no threshold to defer by.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        runtime: str | None = None,
        precision: Precision | None = None,
        defer_to: Predictor | Teacher | None = None,
        threshold: float | None = None,
    ) -> None:
        folder = _deployed(Path(directory))
        self.manifest = Manifest.read(folder)
        self.file = _choose(folder, runtime, precision)
        self._session = open_session(self.file, batch=1)
        if self._session.num_classes != len(self.manifest.labels):
            raise TutelageError(
                f"{self.file}: gives {self._session.num_classes} logits, but labels.txt has "
                f"{len(self.manifest.labels)} lines; export again"
            )
        self._teacher = defer_to
        self.threshold = _threshold(self.manifest, folder, defer_to, threshold)

    def __call__(
        self, pictures: Picture | Iterable[Picture], top: int = 5, *, errors: Errors = "raise"
    ) -> list[Prediction]:
        """Classify files, folders (with all folders in them), uint8 arrays (H, W, 3) or (H, W), or PIL images.

        Args:
            pictures: one of these, or any number of them.
            top: number of classes of each prediction.
            errors: ``raise``: the first picture that cannot be read ends the call; ``skip``: such a picture is left
                out, with a Python warning that names it, and all others are classified.

        Raises:
            TutelageError: an image cannot be read, or a value is no picture.
        """
        return list(self.stream(pictures, top, errors=errors))

    def stream(
        self, pictures: Picture | Iterable[Picture], top: int = 5, *, errors: Errors = "raise"
    ) -> Iterator[Prediction]:
        """As calling the predictor, but one image at a time."""
        if errors not in ("raise", "skip"):
            raise TutelageError(f"errors={errors!r}: write 'raise' or 'skip', such as errors='skip'")
        for picture in _each(pictures):
            try:
                if isinstance(picture, TutelageError):
                    raise picture
                found = self._predict(picture, top)
            except TutelageError as error:
                if errors == "raise":
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            yield found

    def logits(self, picture: Picture) -> np.ndarray:
        """The logits of one image, float32 (C,), not divided by the temperature."""
        spec = self.manifest.input_spec
        return self._session(normalised(eval_pixels(_load(picture), spec), spec)[None])[0]

    def _predict(self, picture: Picture, top: int) -> Prediction:
        probabilities = _softmax(self.logits(picture) / self.manifest.temperature)
        if self._teacher is not None and probabilities.max() < self.threshold:
            return replace(self._ask(self._teacher, picture, top), deferred=True)
        return self._prediction(picture, probabilities, top)

    def _ask(self, teacher: Predictor | Teacher, picture: Picture, top: int) -> Prediction:
        if isinstance(teacher, Predictor):
            return teacher._predict(picture, top)
        answer = teacher(picture)
        if isinstance(answer, Prediction):
            return answer
        logits, classes = np.asarray(answer, np.float64), len(self.manifest.labels)
        if logits.shape != (classes,) or not np.isfinite(logits).all():
            raise TutelageError(
                f"defer_to: gave {logits.shape} values for {_name(picture)}; return {classes} finite logits, one for "
                "each class in the order of labels.txt, or a Prediction"
            )
        return self._prediction(picture, _softmax(logits), top)

    def _prediction(self, picture: Picture, probabilities: np.ndarray, top: int) -> Prediction:
        best = np.argsort(-probabilities, kind="stable")[: max(1, top)]
        manifest = self.manifest
        guesses = (
            Guess(manifest.labels[i], manifest.class_ids[i], int(i), float(probabilities[i])) for i in best
        )
        return Prediction(_name(picture), tuple(guesses))


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The given files, and the image files in the given folders, sorted.

    As in training, hidden files and folders (such as macOS leaves: ``._cat.jpg``), those of the system, folders that
    are named like images, and links back to a folder above are passed over.

    Raises:
        TutelageError: a path does not exist, or a folder has no images or cannot be read.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise TutelageError(f"{path}: no such image or folder")
            yield path
            continue
        found = sorted(walk(path).images)
        if not found:
            raise TutelageError(f"{path}: no images found; looked for {' '.join(sorted(SUFFIXES))}")
        yield from found


def _deployed(folder: Path) -> Path:
    """The deployed directory that is meant: itself, or a run's.

    Raises:
        TutelageError: there is none.
    """
    if not folder.is_dir():
        raise TutelageError(f"{folder}: no such directory; use one that `tutelage export` wrote")
    inside = folder / "deploy"
    if inside.is_dir() and not (folder / PREPROCESS).exists():
        return inside
    if (folder / "recipe.yaml").is_file():
        seeds = sorted(place.parent for place in folder.glob("seed-*/deploy"))
        remedy = f"name one of its seeds, such as {seeds[0]}" if seeds else f"run `tutelage export {folder}`"
        raise TutelageError(f"{folder}: a run without deployed files; {remedy}")
    return folder


def _threshold(
    manifest: Manifest, folder: Path, defer_to: Predictor | Teacher | None, given: float | None
) -> float:
    """The confidence from which the model answers alone; 0: always."""
    if given is not None and not 0 <= given <= 1:
        raise TutelageError(f"threshold={given:g}: give a confidence from 0 to 1, such as threshold=0.8")
    if defer_to is None:
        if given is not None:
            raise TutelageError(
                f"threshold={given:g}: has no effect without defer_to; give who answers below it"
            )
        return 0.0
    if isinstance(defer_to, Predictor):
        if defer_to.manifest.class_ids != manifest.class_ids:
            raise TutelageError(
                f"defer_to: {defer_to.file.parent} has other classes than {folder}, or in another order; "
                "give a model of the same classes"
            )
    elif not callable(defer_to):
        raise TutelageError(f"defer_to={defer_to!r}: give a Predictor, or a function that takes a picture")
    if given is not None:
        return float(given)
    if not manifest.cascade:
        raise TutelageError(
            f"{folder}: has no threshold to defer by; run `tutelage cascade RUN`, or give one, such as threshold=0.8"
        )
    return float(manifest.cascade["threshold"])


def _choose(folder: Path, runtime: str | None, precision: Precision | None) -> Path:
    """The preferred one of the files that are there and can be run.

    Raises:
        TutelageError: there is none.
    """
    if runtime not in (None, *(one.name for one in RUNTIMES)):
        raise TutelageError(f"runtime {runtime}: choose from {', '.join(one.name for one in RUNTIMES)}")
    present = [(one, runtime_of(one.file)) for one in preferred() if (folder / one.file).exists()]
    wanted = [
        (variant, its)
        for variant, its in present
        if runtime in (None, its.name) and precision in (None, variant.precision)
    ]
    if not wanted:
        names = ", ".join(variant.file for variant, _ in present) or "no model file"
        asked = " ".join(filter(None, (runtime, precision))) or "any runtime"
        raise TutelageError(f"{folder}: has {names}, and none for {asked}; export again")
    for variant, its in wanted:
        if its.is_installed:
            return folder / variant.file
    names = " or ".join(sorted({its.name for _, its in wanted}))
    remedies = " or ".join(dict.fromkeys(its.remedy for _, its in wanted))
    raise TutelageError(f"{folder}: {names} is not installed; {remedies}")


def _each(pictures: Any) -> Iterator[Picture | TutelageError]:
    """Each picture, with the error in the place of one that is none, so that the others are not lost."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        yield from pictures
    elif isinstance(pictures, np.ndarray | Image.Image):
        yield pictures
    elif isinstance(pictures, str | os.PathLike):
        try:
            yield from find_images([_path(pictures)])
        except TutelageError as error:
            yield error
    elif reason := _no_picture(pictures):
        yield TutelageError(f"{reason}; {GIVE}")
    else:
        for picture in pictures:
            yield from _each(picture)


def _path(given: str | os.PathLike[Any]) -> Path:
    text = os.fspath(given)
    if not text:
        raise TutelageError(f"{given!r}: an empty path; {GIVE}")
    return Path(os.fsdecode(text))


def _no_picture(given: Any) -> str:
    """What is wrong with a value that is neither a picture nor pictures; empty where it may be several."""
    kind = type(given).__name__
    if isinstance(given, bytes | bytearray | memoryview):
        return f"{kind} of {len(given):,}: not a picture; open a file's content with PIL.Image.open(io.BytesIO(...))"
    if callable(getattr(given, "read", None)):
        return f"{kind}: not a picture; open the file with PIL.Image.open(...)"
    if type(given).__module__.partition(".")[0] == "torch":
        return f"{kind}: not a picture; convert a tensor with .permute(1, 2, 0).numpy(), 0 to 255 as uint8"
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        return f"{kind}: not a picture"
    return ""


def _load(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return upright_rgb(_from_array(picture))
    if isinstance(picture, Image.Image):
        return _from_picture(picture)
    return decode(Path(picture), str(picture))


def _from_picture(picture: Image.Image) -> Image.Image:
    try:
        with _LOADING:
            copied = picture.copy()  # since it is rotated in place
        return upright_rgb(copied)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise TutelageError(
            f"{_name(picture)}: cannot be decoded ({one_line(error)[:200]}); replace it"
        ) from None


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
