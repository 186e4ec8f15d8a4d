"""Classify images with a deployed directory. Does not import torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import eval_pixels, normalised
from tutelage.deploy.manifest import PREPROCESS, Manifest
from tutelage.deploy.pictures import Picture, each_picture, load, name_of
from tutelage.deploy.runtimes.base import Precision, Session
from tutelage.deploy.runtimes.registry import RUNTIMES, open_session, preferred, runtime_of

Errors = Literal["raise", "skip"]
Teacher: TypeAlias = Callable[[Picture], "Prediction | np.ndarray | Sequence[float]"]
BATCH = 8  # images at once where the file is int8, which is then a fifth faster on one core; float32 gains nothing


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
        precision: ``int8``, ``int4``, ``fp32`` or ``fp16``; None: int8 with OpenVINO, fp32 with ONNX Runtime, if both
            are there.
        defer_to: who answers where the model's confidence is below the threshold: another `Predictor` of the same
            classes, or a function that takes the picture and returns the logits (C,) of the classes in their order, or
            a `Prediction`. None: the model answers always.
        threshold: of the confidence, 0 to 1; None: the one that ``tutelage cascade`` chose.
        batch: pictures that are run at once where several are given; None: the fastest for the file on one core.

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
        batch: int | None = 1,
    ) -> None:
        if batch is not None and batch < 1:
            raise TutelageError(f"batch={batch}: give at least 1 picture, such as batch=8")
        folder = _deployed(Path(directory))
        self.manifest = Manifest.read(folder)
        self.file = _choose(folder, runtime, precision)
        self.batch = batch or best_batch(self.file)
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
        """As calling the predictor, but one image at a time, or `batch` of them."""
        if errors not in ("raise", "skip"):
            raise TutelageError(f"errors={errors!r}: write 'raise' or 'skip', such as errors='skip'")
        for found in self.answers(pictures, top):
            if isinstance(found, Prediction):
                yield found
            elif errors == "raise":
                raise found
            else:
                warnings.warn(f"left out: {found}", stacklevel=2)

    def answers(
        self, pictures: Picture | Iterable[Picture | TutelageError], top: int = 5
    ) -> Iterator[Prediction | TutelageError]:
        """As `stream`, with the error in the place of each picture that cannot be read; errors are passed on."""
        waiting = each_picture(pictures)
        while group := list(islice(waiting, self.batch)):
            prepared = [self._prepared(picture) for picture in group]
            images = [one for one in prepared if isinstance(one, np.ndarray)]
            logits = iter(self._run(images))
            for picture, one in zip(group, prepared, strict=True):
                if isinstance(one, TutelageError):
                    yield one
                    continue
                assert not isinstance(picture, TutelageError)  # it would have been passed on
                try:
                    yield self._answer(picture, next(logits), top)
                except TutelageError as error:  # of the teacher
                    yield error

    def logits(self, picture: Picture) -> np.ndarray:
        """The logits of one image, float32 (C,), not divided by the temperature."""
        return self._session(self._image(picture)[None])[0]

    def _image(self, picture: Picture) -> np.ndarray:
        spec = self.manifest.input_spec
        return normalised(eval_pixels(load(picture), spec), spec)

    def _prepared(self, picture: Picture | TutelageError) -> np.ndarray | TutelageError:
        if isinstance(picture, TutelageError):
            return picture
        try:
            return self._image(picture)
        except TutelageError as error:
            return error

    @cached_property
    def _batches(self) -> Session:
        return open_session(self.file, batch=self.batch)

    def _run(self, images: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        """The logits of these images; fewer than a batch are run one by one."""
        if len(images) == self.batch > 1:
            return self._batches(np.stack(images))
        return [self._session(image[None])[0] for image in images]

    def _answer(self, picture: Picture, logits: np.ndarray, top: int) -> Prediction:
        probabilities = _softmax(logits / self.manifest.temperature)
        if self._teacher is not None and probabilities.max() < self.threshold:
            return replace(self._ask(self._teacher, picture, top), deferred=True)
        return self._prediction(picture, probabilities, top)

    def _ask(self, teacher: Predictor | Teacher, picture: Picture, top: int) -> Prediction:
        if isinstance(teacher, Predictor):
            return teacher._answer(picture, teacher.logits(picture), top)
        answer = teacher(picture)
        if isinstance(answer, Prediction):
            return answer
        logits, classes = np.asarray(answer, np.float64), len(self.manifest.labels)
        if logits.shape != (classes,) or not np.isfinite(logits).all():
            raise TutelageError(
                f"defer_to: gave {logits.shape} values for {name_of(picture)}; return {classes} finite logits, one for "
                "each class in the order of labels.txt, or a Prediction"
            )
        return self._prediction(picture, _softmax(logits), top)

    def _prediction(self, picture: Picture, probabilities: np.ndarray, top: int) -> Prediction:
        best = np.argsort(-probabilities, kind="stable")[: max(1, top)]
        manifest = self.manifest
        guesses = (
            Guess(manifest.labels[i], manifest.class_ids[i], int(i), float(probabilities[i])) for i in best
        )
        return Prediction(name_of(picture), tuple(guesses))


def best_batch(file: Path) -> int:
    """The number of images at once with which a model file is fastest on one core."""
    return BATCH if any(one.file == file.name and one.int8 for one in preferred()) else 1


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
    if precision not in (None, *get_args(Precision)):
        raise TutelageError(f"precision {precision}: choose from {', '.join(get_args(Precision))}")
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
    wanted = [(variant, its) for variant, its in wanted if its.runs_here]
    if not wanted:
        names = ", ".join(variant.file for variant, _ in present)
        raise TutelageError(f"{folder}: {names} cannot be run on this machine; export another format")
    names = " or ".join(sorted({its.name for _, its in wanted}))
    remedies = " or ".join(dict.fromkeys(its.remedy for _, its in wanted))
    raise TutelageError(f"{folder}: {names} is not installed; {remedies}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
