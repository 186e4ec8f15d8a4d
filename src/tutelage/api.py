"""What a program uses: the same as the command line does, with objects in place of names where wanted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json
from tutelage.core.processes import end_together
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.recipe_tree import read_yaml, set_keys
from tutelage.core.run_dir import Run
from tutelage.evaluation.compare import compare as compare_models
from tutelage.evaluation.table import Row, Table
from tutelage.evaluation.verdict import Outcome, outcome_of
from tutelage.models.registry import OBJECT, architecture, given, load_model
from tutelage.models.source import Model
from tutelage.pipeline.advise import Advice
from tutelage.pipeline.advise import advise as advise_run
from tutelage.pipeline.console import open_progress
from tutelage.pipeline.early import check_early
from tutelage.pipeline.run import begin, refusals_leave_nothing
from tutelage.pipeline.run import distill as run_stages
from tutelage.pipeline.seeds import distill_seeds

AnyModel = str | Model | nn.Module


@dataclass(frozen=True)
class Verdict:
    """What came of a run, on test.

    Attributes:
        sentence: the verdict in words, with every difference and its interval.
        outcome: ``better``, ``worse`` or ``not significantly different``; None where there is nothing to compare with.
        against: the role that the outcome is about: ``start``, ``control`` or ``teacher``.
        kept: the name of the candidate that was kept.
    """

    sentence: str
    outcome: Outcome | None
    against: str | None
    kept: str


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: its directory.
        verdict: what came of it.
        table: teacher, start, linear probe, control and distilled student on the same test images.
        findings: of the diagnosis, each with its title, severity, explanation and what to try.
        student: the student that was kept, loaded.
        student_file: its weights.
        report: the page.
        deployed: the directory of deployed files; None where none were asked for.
        seeds: mean, standard deviation and pooled intervals over all seeds; None for one seed. The other fields are
            then of the first seed.
    """

    run: Path
    verdict: Verdict
    table: Table
    findings: list[dict[str, Any]]
    student: Model
    student_file: Path
    report: Path
    deployed: Path | None
    seeds: dict[str, Any] | None = None


def distill(
    teacher: AnyModel | None = None,
    student: AnyModel | None = None,
    data: str | Path | None = None,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    name: str | None = None,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: int = 1,
    runs: str | Path = "runs",
    progress: Progress | Literal["rich", "plain", "json", "none"] = "none",
) -> Result:
    """Distil a teacher into a student, and measure what came of it; what `tutelage distill` does.

    Args:
        teacher: NAME@WEIGHTS, a `Model`, or any ``nn.Module`` (see `Model.of` for one whose input or classes are to be
            told). Objects are copied and stay as they are.
        student: likewise.
        data: a folder of images, or KIND:WHERE.
        epochs: passes over the training images (the recipe's ``train.epochs``).
        lr: learning rate (``train.lr``).
        name: of the run directory; None: made of the models' names and the time.
        recipe: what is not given here: a recipe, a mapping like one, or a YAML file.
        settings: further keys of the recipe, such as ``{"loss.temperature": 3, "train.ema": 0}``.
        seeds: repeat with so many seeds.
        runs: where the run directory is made.
        progress: where the run reports to.

    Raises:
        TutelageError: bad input, or the pre-flight found nothing to teach; one line that says what to do.
        Interrupted: a signal asked to stop. Where both models have names, `tutelage resume` goes on.
    """
    models = {
        role: _model(one) for role, one in (("teacher", teacher), ("student", student)) if one is not None
    }
    objects = {_name_of(role, one): one for role, one in models.items() if isinstance(one, Model)}
    names = {
        f"{role}.model": one if isinstance(one, str) else f"{OBJECT}:{_name_of(role, one)}"
        for role, one in models.items()
    }
    flags = {"data.train": data and str(data), "train.epochs": epochs, "train.lr": lr, "name": name}
    tree = _tree(recipe)
    given_keys = {**names, **{key: value for key, value in flags.items() if value is not None}}
    if twice := given_keys.keys() & (settings or {}).keys():
        raise TutelageError(f"tutelage.distill: {min(twice)} is given twice, by itself and in settings")
    set_keys(tree, [*(settings or {}).items(), *given_keys.items()])
    parsed = parse_recipe(tree, "tutelage.distill")
    reporter = open_progress(progress) if isinstance(progress, str) else progress
    check_early(parsed, Path(runs))
    with given(objects):
        try:
            run = begin(parsed, Path(runs), shlex.join(["python", *sys.argv]), seeds)
            with refusals_leave_nothing(run):
                summary = distill_seeds(parsed, run, seeds, reporter) if seeds > 1 else None
                if seeds == 1:
                    run_stages(parsed, run, reporter)
        except Exception as error:
            raise end_together(error) from None
        if seeds > 1:
            run = Run(run.path / f"seed-{parsed.train.seed}")
        return _result(run, summary)


def advise(
    data: str | Path,
    teacher: AnyModel | None = None,
    students: Sequence[AnyModel] = (),
    *,
    teacher_resolution: int | None = None,
    student_resolutions: Sequence[int] = (),
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    images: int = 2000,
    device: str | None = None,
) -> Advice:
    """Tell whether distilling is right for some images, and which student fits; what `tutelage advise` does.

    Args:
        data: a folder of labelled images, or KIND:WHERE. The images that a run would keep for test are not used.
        teacher: NAME@WEIGHTS, `Model` or ``nn.Module``; None: the recipe's default.
        students: likewise; () takes smaller models whose pretrained weights are on this machine.
        teacher_resolution: in pixels; None: the teacher's own.
        student_resolutions: in pixels, of every student; () takes its own and two smaller ones.
        max_latency_ms: of one image, median, on this machine; None: no limit.
        max_size_mb: of parameters and buffers in MiB (2^20 bytes); None: no limit.
        images: at most so many to fit linear probes to, and half as many held out to judge them.
        device: ``cpu``, ``cuda`` or ``mps``; None: the best there is.

    Raises:
        TutelageError: data or a model is missing or cannot be used.
    """
    return advise_run(
        str(data),
        None if teacher is None else _model(teacher),
        [_model(student) for student in students],
        teacher_resolution=teacher_resolution,
        student_resolutions=student_resolutions,
        max_latency_ms=max_latency_ms,
        max_size_mb=max_size_mb,
        images=images,
        device=device,
    )


def compare(
    models: Sequence[AnyModel],
    data: str | Path | None = None,
    *,
    batch_size: int = 32,
    threads: int | None = None,
    device: str | None = None,
) -> Table:
    """Size, speed and quality of models side by side; what `tutelage compare` does.

    Args:
        models: NAME@WEIGHTS, `Model` or ``nn.Module`` each; the first is the one that the others are compared with.
        data: a folder of labelled images, or KIND:WHERE; None: no quality.
        batch_size: images a batch, for the throughput.
        threads: of the CPU; None: PyTorch's choice.
        device: ``cpu``, ``cuda`` or ``mps``; None: the best there is.

    Raises:
        TutelageError: a model, the data or the device is not there.
    """
    made = [_model(model) for model in models]
    source = str(data) if data is not None else None
    return compare_models(made, data=source, batch_size=batch_size, threads=threads, device=device)


def _model(model: AnyModel) -> str | Model:
    if isinstance(model, str | Model):
        return model
    if isinstance(model, nn.Module):
        return Model.of(model)
    raise TutelageError(f"a model is a name, a Model or an nn.Module, not {type(model).__name__}")


def _name_of(role: str, model: Model) -> str:
    """What an object is called in the recipe, without its kind; ``@none`` marks random weights, as in timm's names."""
    return role if model.pretrained else f"{role}@none"


def _tree(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json")
    return read_yaml(Path(recipe)) if isinstance(recipe, str | Path) else dict(recipe)


def _result(run: Run, seeds: dict[str, Any] | None) -> Result:
    comparison = read_json(run.comparison)
    record = comparison["verdict"]
    kept = read_json(run.candidates)["kept"]
    recipe = load_recipe(run.recipe)
    return Result(
        run=run.path,
        verdict=Verdict(record["sentence"], outcome_of(record), record.get("against"), kept),
        table=Table([Row.from_dict(row) for row in comparison["rows"]], comparison.get("notes", ())),
        findings=read_json(run.diagnosis)["findings"],
        student=load_model(f"{architecture(recipe.student.model)}@{run.student}"),
        student_file=run.student,
        report=run.report,
        deployed=run.deploy if run.deploy.is_dir() else None,
        seeds=seeds,
    )
