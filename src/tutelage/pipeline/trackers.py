"""Logging of a run's parameters, metrics, files and model to TensorBoard and MLflow with their own libraries."""

from __future__ import annotations

import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tutelage.core.errors import TutelageError, WeakTeacher, one_line
from tutelage.core.files import read_json, write_text
from tutelage.core.progress import Progress, Tabular
from tutelage.core.recipe_tree import flat
from tutelage.core.run_dir import Run
from tutelage.distillation.stop import Interrupted
from tutelage.pipeline import patience
from tutelage.pipeline.patience import within

if TYPE_CHECKING:
    from tutelage.models.source import Model

log = logging.getLogger(__name__)

NO_METRICS = ("stage", "epoch", "epochs", "step")
FIGURES = (
    "size_mb",
    "latency_ms",
    "images_per_s",
    "top1",
    "top5",
    "nll",
    "ece",
    "agreement",
    "fidelity",
)  # logged for each model on test
MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.pytorch"}
BATCH = 100  # most parameters in one MLflow request
LONGEST = 6000  # most characters in an MLflow parameter

Outcome = Literal["FINISHED", "FAILED", "KILLED"]  # in MLflow's words


class Tracker(Protocol):
    """Receives a run's parameters, metrics, files and model."""

    def on_start(self, params: Mapping[str, Any]) -> None:
        """Called when the run begins or is resumed, with the recipe, nested or flat."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Called when an epoch has ended, with its row of ``metrics.jsonl``."""

    def on_end(self, artifacts: Sequence[Path], model: Model | None) -> None:
        """Called when the run is finished, with its files (directories with all of their content) and its student."""

    def close(self, outcome: Outcome) -> None:
        """Write buffered data and close the store; called once, last, however the run ended."""


@contextmanager
def tracking(names: Sequence[str], run: Run, params: Mapping[str, Any]) -> Iterator[Tracker]:
    """Open the trackers that a recipe asks for, and close them however the run ends.

    A run that ends with an error is marked as failed in them; one that is interrupted, or stopped for its weak teacher,
    is marked as killed.

    A tracker that fails or does not answer within `patience.SECONDS` is disabled with one line in the log.

    Args:
        names: as in `open_trackers`.
        run: its directory has the stores.
        params: the recipe, nested or flat.

    Raises:
        TutelageError: as `open_trackers`.
    """
    tracker = open_trackers(names, run)
    outcome: Outcome = "FAILED"
    try:
        tracker.on_start(params)
        yield tracker
        outcome = "FINISHED"
    except (Interrupted, KeyboardInterrupt, WeakTeacher):
        outcome = "KILLED"
        raise
    finally:
        tracker.close(outcome)


def open_trackers(names: Sequence[str], run: Run) -> Tracker:
    """Open the trackers that a recipe asks for, combined into one; `tracking` also closes them.

    A tracker that cannot be opened is left out, with one line in the log, so that a server that is down does not stop
    a training.

    Args:
        names: of ``tensorboard`` and ``mlflow``.
        run: its directory has the stores.

    Raises:
        TutelageError: a tracker is unknown, or its package is not installed.
    """
    makers: dict[str, Callable[[Run], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
    for name in names:
        if name not in makers:
            raise TutelageError(f"track: {name!r} is not one of {', '.join(makers)}")
    trackers: dict[str, Tracker] = {}
    for name in names:
        try:
            for module in (name, MODULES[name]):  # before the clock runs, since it takes seconds
                importlib.import_module(module)
        except ImportError:
            Trackers(trackers).close("FAILED")
            raise TutelageError(f"track: {name} is not installed; `pip install 'tutelage[{name}]'`") from None
        try:
            trackers[name] = within(partial(makers[name], run))
        except Exception as error:  # of any library
            log.warning("%s cannot start, and the run goes on without it: %s", name, one_line(error))
    return Trackers(trackers)


class Trackers:
    """Several trackers combined into one, by name; without any, nothing is logged."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self.trackers = trackers

    def on_start(self, params: Mapping[str, Any]) -> None:
        """Start each."""
        self._call_each(lambda tracker: within(lambda: tracker.on_start(params)))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Pass the row on to each."""
        self._call_each(lambda tracker: within(lambda: tracker.on_epoch(row)))

    def on_end(self, artifacts: Sequence[Path], model: Model | None) -> None:
        """Pass the files and the model on to each."""
        self._call_each(lambda tracker: tracker.on_end(artifacts, model))

    def close(self, outcome: Outcome) -> None:
        """Close each."""
        self._call_each(lambda tracker: within(lambda: tracker.close(outcome)))

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                log.warning("%s is disabled after an error: %s", name, one_line(error))
                self.trackers.pop(name, None)
                with suppress(Exception):
                    within(lambda tracker=tracker: tracker.close("FAILED"))  # type: ignore[misc]


class TensorBoard:
    """Event files in the run's ``tensorboard`` directory; read with ``tensorboard --logdir``.

    They hold figures and the paths of the artifacts, but not the model.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.params: dict[str, Any] = {}
        self.writer = SummaryWriter(str(run.tensorboard))

    def on_start(self, params: Mapping[str, Any]) -> None:
        """Write the recipe as a table of keys and values."""
        self.params = flat(params)
        rows = [f"| {key} | {value} |" for key, value in self.params.items()]
        self.writer.add_text("recipe", "\n".join(["| key | value |", "|---|---|", *rows]))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Write a scalar ``stage/figure`` for each figure; its step is the epoch."""
        for name, value in epoch_metrics(row).items():
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def on_end(self, artifacts: Sequence[Path], model: Model | None) -> None:
        """Write the figures on test as scalars, and with the recipe in the HPARAMS tab."""
        figures = final_metrics(self.run)
        for name, value in figures.items():
            self.writer.add_scalar(name, value)
        self.writer.add_text("artifacts", "\n\n".join(f"`{path}`" for path in artifacts))
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.params.items()}
        self.writer.add_hparams(plain, figures, run_name=".")

    def close(self, outcome: Outcome) -> None:
        """Write buffered data; event files have no field for an outcome."""
        self.writer.close()


class MLflow:
    """A run in the store that ``MLFLOW_TRACKING_URI`` names, or in SQLite in the run's ``mlflow`` directory.

    A run that is resumed continues the same MLflow run.
    """

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent to third parties
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_TIMEOUT", f"{patience.SECONDS:g}"
        )  # else 120 seconds, seven times
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow.pytorch  # noqa: F401 - a missing or broken package is found before training
        from mlflow import MlflowClient

        self.run = run
        run.mlflow.mkdir(parents=True, exist_ok=True)
        place, self._keeper = _plain_path(run.mlflow.resolve())
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}/mlflow.db"
        with _quiet():
            self.client = MlflowClient(tracking_uri=self.uri)
        self.id = ""

    def on_start(self, params: Mapping[str, Any]) -> None:
        """Begin the MLflow run with the recipe as parameters, or find it again."""
        from mlflow.entities import Param

        known = self.run.mlflow / "run_id"
        if known.exists():
            self.id = known.read_text(encoding="utf-8").strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        with _quiet():
            created = self.client.create_run(self._experiment(), run_name=self.run.path.resolve().name)
        self.id = created.info.run_id
        write_text(known, self.id + "\n")
        entries = [Param(key, str(value)[:LONGEST]) for key, value in flat(params).items()]
        for first in range(0, len(entries), BATCH):
            self.client.log_batch(self.id, params=entries[first : first + BATCH])

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Log a metric ``stage/figure`` for each figure; its step is the epoch."""
        self._log(epoch_metrics(row), row["epoch"])

    def on_end(self, artifacts: Sequence[Path], model: Model | None) -> None:
        """Log the figures on test, the files, and the model as a traced graph (torch.export; no pickle)."""
        self._log(final_metrics(self.run), 0)
        for path in artifacts:
            if path.is_dir():
                self.client.log_artifacts(self.id, str(path), artifact_path=path.name)
            else:
                self.client.log_artifact(self.id, str(path))
        if model is not None:
            self._log_model(model)

    def close(self, outcome: Outcome) -> None:
        """Mark the MLflow run as finished, failed or killed."""
        if self.id:
            self.client.set_terminated(self.id, outcome)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tutelage")
        found = self.client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        own = (self.run.mlflow / "artifacts").resolve().as_uri()
        return self.client.create_experiment(name, None if "MLFLOW_TRACKING_URI" in os.environ else own)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(k, v, now, step) for k, v in figures.items()])

    def _log_model(self, model: Model) -> None:
        import mlflow
        import numpy as np
        import timm
        import torch

        spec, before = model.input_spec, mlflow.get_tracking_uri()
        example = np.zeros((2, len(spec.mean), spec.height, spec.width), np.float32)
        mlflow.set_tracking_uri(self.uri)
        try:
            with _quiet(), mlflow.start_run(run_id=self.id):
                mlflow.pytorch.log_model(
                    model.module.cpu().eval(),
                    name="student",
                    input_example=example,
                    serialization_format="pt2",
                    pip_requirements=[
                        f"torch=={torch.__version__.split('+')[0]}",
                        f"timm=={timm.__version__}",
                    ],
                    metadata=model.metadata(),
                )
        finally:
            mlflow.set_tracking_uri(before)


class Tracked:
    """Progress that also passes each epoch on to a tracker."""

    def __init__(self, progress: Progress, tracker: Tracker) -> None:
        self.progress = progress
        self.tracker = tracker

    def say(self, text: str) -> None:
        """Pass on."""
        self.progress.say(text)

    def begin(self, stage: str, steps: int) -> None:
        """Pass on."""
        self.progress.begin(stage, steps)

    def step(self, losses: dict[str, float], images: int) -> None:
        """Pass on."""
        self.progress.step(losses, images)

    def epoch(self, row: dict[str, Any]) -> None:
        """Pass the epoch on to both."""
        self.progress.epoch(row)
        self.tracker.on_epoch(row)

    def end(self) -> None:
        """Pass on."""
        self.progress.end()

    def table(self, table: Tabular) -> None:
        """Pass on."""
        self.progress.table(table)


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return every figure of a row of ``metrics.jsonl``, named ``distill/val/top1`` and so on."""
    figures = flat({k: v for k, v in row.items() if k not in NO_METRICS}, "/")
    return {f"{row['stage']}/{name}": float(value) for name, value in figures.items() if _is_number(value)}


def final_metrics(run: Run) -> dict[str, float]:
    """Return the figures of all models in ``comparison.json``, named ``test/distilled/top1`` etc.; none without it."""
    rows = read_json(run.comparison)["rows"] if run.comparison.exists() else []
    return {f"test/{r['role']}/{k}": float(r[k]) for r in rows for k in FIGURES if _is_number(r.get(k))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain_path(place: Path) -> tuple[Path, TemporaryDirectory[str] | None]:
    """Return a path of a directory without signs that mean something in a URI, and what keeps it.

    SQLAlchemy and MLflow do not quote such signs in the same way, so that the directory gets a link with a plain name.
    """
    if not set("?#%") & set(str(place)):
        return place, None
    keeper = TemporaryDirectory(prefix="tutelage-")
    link = Path(keeper.name) / "store"
    link.symlink_to(place, target_is_directory=True)
    return link, keeper


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of MLflow and Alembic about the tables that they create."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
