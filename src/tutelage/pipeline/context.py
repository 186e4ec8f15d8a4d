"""The environment that all stages of a run share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe
from tutelage.core.records import write_stage_metrics
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Precision, Runtime
from tutelage.data.loading import Loading
from tutelage.distillation.loop import train
from tutelage.distillation.stage import Stage, Trained


@dataclass(frozen=True)
class Context:
    """The directory, the runtime and the progress of a run.

    Attributes:
        run: the run directory.
        runtime: device, processes, precision.
        progress: receives reports.
        loading: how images are loaded.
        memo: directory where the runs of a study keep results that all of them need; None: a single run.
    """

    run: Run
    runtime: Runtime
    progress: Progress
    loading: Loading
    memo: Path | None = None

    def in_precision(self, precision: Precision) -> Context:
        """Return the same context with another training precision."""
        return replace(self, runtime=replace(self.runtime, precision=precision))

    def train(self, stage: Stage) -> Trained:
        """Train a stage; its metrics and its checkpoint in the run have the stage's name."""
        return train(
            stage,
            self.runtime,
            self.checkpoint(stage),
            loading=self.loading,
            progress=self.progress,
            on_epoch=lambda rows: write_stage_metrics(self.run.metrics, stage.name, rows),
        )

    def checkpoint(self, stage: Stage) -> Path:
        """Return the path of a stage's checkpoint."""
        return self.run.checkpoints / f"{stage.name}.safetensors"

    def cache_directory(self, recipe: Recipe) -> Path:
        """Return the directory for decoded images and targets: one shared with other runs, or the run's own."""
        if recipe.targets.directory:
            return Path(recipe.targets.directory).expanduser()
        return self.memo or self.run.cache
