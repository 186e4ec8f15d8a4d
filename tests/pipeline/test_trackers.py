"""TensorBoard's and MLflow's stores, read back through their own APIs."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.core.errors import TutelageError, WeakTeacher
from tutelage.core.files import write_json, write_text
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.distillation.stop import Interrupted
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.trackers import TensorBoard, Tracker, Trackers, open_trackers, tracking

PARAMS = {
    "train": {"lr": 1e-3, "epochs": 2},
    "teacher": {"model": "big"},
    "control": True,
    "track": ["mlflow"],
}
ROWS: list[dict[str, Any]] = [
    {
        "stage": stage,
        "epoch": epoch,
        "epochs": 2,
        "step": 10 * epoch,
        "loss": {"total": 2.0 / epoch, "kd": 1.5 / epoch},
        "train_top1": None,
        "val": {"top1": 60.0 + epoch, "nll": 1.0 / epoch},
        "ema_val": None,
        "lr": 1e-3 / epoch,
        "images_per_s": 100.0,
        "seconds": 1.5,
    }
    for stage in ("control", "distill")
    for epoch in (1, 2)
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, "tracked")
    write_text(run.recipe, "name: tracked\n")
    write_json(run.comparison, {"rows": [{"role": "distilled", "top1": 63.5, "size_mb": 4.0, "ece": None}]})
    (run.deploy / "onnx").mkdir(parents=True)
    write_text(run.deploy / "onnx" / "labels.txt", "cat\n")
    return run


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("test_efficientnet@none", num_classes=3)


def tell(tracker: Tracker, run: Run, model: Model | None) -> None:
    tracker.on_start(PARAMS)
    for row in ROWS:
        tracker.on_epoch(row)
    tracker.on_end([run.recipe, run.deploy], model)
    tracker.close("FINISHED")


def test_tensorboard_has_every_figure(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(open_trackers(["tensorboard"], run), run, None)
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    for stage in ("control", "distill"):
        top1 = [(e.step, e.value) for e in events.Scalars(f"{stage}/val/top1")]
        assert top1 == [(1, 61.0), (2, 62.0)]
        assert [e.value for e in events.Scalars(f"{stage}/loss/kd")] == [1.5, 0.75]
    assert events.Scalars("test/distilled/top1")[0].value == 63.5
    assert "distill/train_top1" not in events.Tags()["scalars"]
    text = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| train.lr | 0.001 |" in text
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow_has_parameters_metrics_files_and_the_model(
    run: Run, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    tell(open_trackers(["mlflow"], run), run, model)
    assert mlflow.get_tracking_uri() == before

    uri = f"sqlite:///{run.mlflow}/mlflow.db"
    client = MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "tutelage")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "tracked"
    assert found.data.params["train.lr"] == "0.001"
    assert found.data.params["teacher.model"] == "big"
    assert found.data.metrics["test/distilled/top1"] == 63.5
    history = client.get_metric_history(found.info.run_id, "distill/val/top1")
    assert sorted((m.step, m.value) for m in history) == [(1, 61.0), (2, 62.0)]
    assert {a.path for a in client.list_artifacts(found.info.run_id)} == {"recipe.yaml", "deploy"}
    assert [a.path for a in client.list_artifacts(found.info.run_id, "deploy/onnx")] == [
        "deploy/onnx/labels.txt"
    ]

    mlflow.set_tracking_uri(uri)
    try:
        (logged,) = mlflow.search_logged_models([experiment.experiment_id], output_format="list")
        loaded = mlflow.pyfunc.load_model(logged.model_uri)
    finally:
        mlflow.set_tracking_uri(before)
    spec = model.input_spec
    images = np.random.default_rng(0).normal(size=(3, 3, spec.height, spec.width)).astype(np.float32)
    with torch.no_grad():
        expected = model.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5)
    assert json.loads(loaded.metadata.metadata["input"])["height"] == spec.height


def test_mlflow_goes_on_with_the_same_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killed = open_trackers(["mlflow"], run)
    killed.on_start(PARAMS)
    killed.on_epoch(ROWS[0])
    resumed = open_trackers(["mlflow"], run)
    resumed.on_start(PARAMS)
    resumed.on_epoch(ROWS[1])
    resumed.on_end([], None)
    resumed.close("FINISHED")

    client = MlflowClient(f"sqlite:///{run.mlflow}/mlflow.db")
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(client.get_metric_history(found.info.run_id, "control/lr")) == 2
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize("store", ["sqlite:///{}/team.db", "file://{}/mlruns"])
def test_mlflow_writes_where_the_environment_says(
    store: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = store.format(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses plain files without
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    tracker = open_trackers(["mlflow"], run)
    tracker.on_start(PARAMS)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("team").experiment_id])
    assert found.data.params["train.epochs"] == "2"
    row = {"stage": "distill", "epoch": 1, "step": 5, "loss": {"total": 1.25}, "val": {"top1": 40.0}}
    tracker.on_epoch(row)
    figures = client.get_run(found.info.run_id).data.metrics
    assert {1.25, 40.0} <= set(figures.values())


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_extra_is_one_clear_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TutelageError, match=rf"pip install 'tutelage\[{name}\]'"):
        open_trackers([name], run)


def test_an_unknown_tracker_is_refused(run: Run) -> None:
    with pytest.raises(TutelageError, match="'wandb' is not one of tensorboard, mlflow"):
        open_trackers(["wandb"], run)


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (None, "FINISHED"),
        (TutelageError("no headroom"), "FAILED"),
        (MemoryError(), "FAILED"),
        (Interrupted(), "KILLED"),
        (WeakTeacher("nothing to teach"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_trackers_are_closed_however_the_run_ends(
    run: Run, raised: BaseException | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = pytest.raises(type(raised)) if raised else nullcontext()
    with expected, tracking(["tensorboard", "mlflow"], run, PARAMS) as tracker:
        tracker.on_epoch(ROWS[0])
        writer = tracker.trackers["tensorboard"].writer
        if raised:
            raise raised
    assert writer.file_writer is None  # closed
    client = MlflowClient(f"sqlite:///{run.mlflow}/mlflow.db")
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found.info.status == status
    assert found.info.end_time is not None
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert len(events.Scalars("control/val/top1")) == 1


def test_a_run_that_fails_marks_its_trackers_as_failed(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny |= {"track": ["mlflow"], "name": "failing", "preflight": {"allow_weak_teacher": False}}
    tiny["teacher"]["fit"] = "no"
    recipe = parse_recipe(tiny)
    failing = begin(recipe, tmp_path, "test")
    with pytest.raises(TutelageError, match="teacher"):
        distill(recipe, failing, Silent())
    client = MlflowClient(f"sqlite:///{failing.mlflow}/mlflow.db")
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found.info.status == "FAILED"


@pytest.mark.parametrize(
    "uri",
    [
        "nowhere://store",
        "sqlite:////proc/nowhere/mlflow.db",
        "sqlite:///{}/broken.db",
        "file:///proc/nowhere",
        "http://127.0.0.1:9",
        "postgresql://u:p@127.0.0.1:9/db",
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line_and_the_run_goes_on(
    uri: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    monkeypatch.setattr("tutelage.pipeline.patience.SECONDS", 3.0)
    with tracking(["tensorboard", "mlflow"], run, PARAMS) as tracker:
        assert list(tracker.trackers) == ["tensorboard"]
        tracker.on_epoch(ROWS[0])
    told = [record.message for record in caplog.records if record.name.startswith("tutelage")]
    assert len(told) == 1
    assert told[0].startswith("mlflow ")
    assert "\n" not in told[0]


def test_a_tracker_that_does_not_answer_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tutelage.pipeline.patience.SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(TensorBoard, "on_start", lambda self, params: time.sleep(30))
    begin_ = time.monotonic()
    with tracking(["tensorboard"], run, PARAMS) as tracker:
        tracker.on_epoch(ROWS[0])
    assert time.monotonic() - begin_ < 5
    assert "no answer within 0.2 seconds" in caplog.text


def test_a_run_in_a_directory_with_signs_of_a_uri_has_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = tmp_path / "which? #1 100%"
    run = Run.create(place, "run")
    with tracking(["mlflow"], run, PARAMS) as tracker:
        assert list(tracker.trackers) == ["mlflow"]
        tracker.on_epoch(ROWS[0])
    assert (run.mlflow / "mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_a_tracker_that_fails_costs_no_training(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_trackers(["tensorboard"], run)
    tracker.on_start(PARAMS)
    tracker.on_epoch({"lr": 0.1})  # no stage: the tracker breaks
    tracker.on_epoch(ROWS[0])
    assert "tensorboard is disabled after an error" in caplog.text


def test_a_library_that_quiets_the_root_logger_hides_no_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow sets the root logger to ERROR when it is imported, so that its own failure was not told."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://store")
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        assert logging.getLogger("tutelage.data.loading").isEnabledFor(logging.WARNING)  # names of bad images
        with tracking(["mlflow"], run, PARAMS) as tracker:
            assert isinstance(tracker, Trackers)
            assert tracker.trackers == {}
    finally:
        logging.root.setLevel(before)
    assert "mlflow cannot start, and the run goes on without it" in caplog.text
