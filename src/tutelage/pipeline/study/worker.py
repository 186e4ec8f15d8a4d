"""The processes that run the trials of a study.

Optuna keeps the trials, so that several processes and machines can work on one study; they share its directory.
Each process claims its trial with a lock that the kernel releases when the process dies, however it dies: the
next free process takes over such a trial, and resumes it from its run directory.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import entry, write_json, write_text
from tutelage.core.progress import Progress
from tutelage.core.recipe import load_recipe
from tutelage.core.recipe_tree import flat, read_yaml, rename_keys
from tutelage.core.run_dir import Run
from tutelage.core.values import AUTO
from tutelage.data.splits import make_splits
from tutelage.distillation.stop import Interrupted
from tutelage.pipeline.choices import choices_of
from tutelage.pipeline.run import describe, distill
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight, with_measured_precision
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.study.plan import Plan, value_of
from tutelage.pipeline.study.ranking import Ranking, ranking
from tutelage.pipeline.study.trials import SEARCHED, Entry, Figures, Reached, kept_candidate
from tutelage.pipeline.versions import versions

POLL_SECONDS = 1.0  # between two checks of trials that other processes work on
MAX_DEATHS = 3  # processes that may die in a trial before it counts as failed
MAX_FAILURES = 3  # in a row; then the cause is probably this process or machine


class StudyFiles:
    """The directory of a study, and the names of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "study.yaml"
        self.journal = path / "journal.log"
        self.lock = path / ".lock"
        self.claims = path / "claims"
        self.trials = path / "trials"
        self.shared = path / "shared"
        self.base = path / "shared" / "runs" / "base"
        self.json = path / "study.json"
        self.markdown = path / "study.md"


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone works on, until the lock is released or the process dies."""

    trial: optuna.Trial
    name: str
    overrides: dict[str, Any]
    lock: FileLock

    @property
    def directory(self) -> str:
        """The name of its run directory."""
        return _directory(self.trial.number, self.name)


def run_study(plan: Plan, root: Path, progress: Progress, command: str) -> Ranking:
    """Work on a study until all of its trials are done, and rank them; also in study.json and study.md.

    Args:
        plan: from `load_study`.
        root: directory of studies; this one's directory has its name.
        progress: receives reports.
        command: recorded with each trial.

    Raises:
        TutelageError: the input is not valid, or the study was begun with another recipe.
        Interrupted, KeyboardInterrupt: the study was asked to stop; the same call resumes it.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TutelageError(
            "start a study without a launcher, as several plain processes, one for each device"
        )
    _check_labels(plan)
    worker = _Worker(plan, StudyFiles(root / plan.name), progress, command)
    worker.work()
    return worker.summary()


def _check_labels(plan: Plan) -> None:
    """Refuse images for model selection that have no labels, before any trial is run."""
    try:
        val = make_splits(plan.base.data.model_copy(update={"drop_duplicates": False})).val
    except TutelageError:
        return  # each trial says what is wrong with its images
    if not val.labelled:
        raise TutelageError(
            f"data.val={val.images.name}: has no labels, by which a study ranks its trials; name labelled images, "
            "or run single recipes with `tutelage distill`"
        )


class _Worker:
    """A process that works on a study. The study's record is only changed while its lock is held."""

    def __init__(self, plan: Plan, files: StudyFiles, progress: Progress, command: str) -> None:
        self.plan, self.files = plan, files
        self.progress, self.command = progress, command
        self.figures = Figures()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            files.claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TutelageError(f"{files.path}: cannot be created ({error.strerror})") from None
        with FileLock(self.files.lock):
            self.study = self._open()

    # --- the study's record

    def _open(self) -> optuna.Study:
        """Begin or continue the study; variants may have been added since it was begun."""
        if self.files.record.exists():
            self._check_same(read_yaml(self.files.record))
        study = optuna.create_study(
            storage=_storage(self.plan, self.files),
            study_name=self.plan.name,
            direction="maximize" if self.plan.base.selection.metric == "top1" else "minimize",
            load_if_exists=True,
        )
        if not self.files.record.exists():
            if study.trials:
                raise TutelageError(
                    f"{self.plan.storage}: has a study {self.plan.name!r} that was begun in another directory "
                    f"than {self.files.path}; continue it there, or use another --name"
                )
            write_text(self.files.record, yaml.safe_dump(self.plan.record(), sort_keys=False))
        self._enqueue(study)
        return study

    def _check_same(self, before: dict[str, Any]) -> None:
        before = before | {"base": rename_keys(before["base"], str(self.files.record))}
        old, new = flat(before), flat(self.plan.record())
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                raise TutelageError(
                    f"{self.files.path}: this study was begun with {key}={old.get(key)!r}, not {new.get(key)!r}; "
                    "restore it, or use another --name"
                )

    def _enqueue(self, study: optuna.Study) -> None:
        known = {
            t.user_attrs["name"]: t.user_attrs["overrides"] for t in study.trials if t.user_attrs.get("name")
        }
        for variant in self.plan.variants:
            if variant.name not in known:
                attrs = {"name": variant.name, "overrides": variant.overrides, "variant": variant.of}
                study.enqueue_trial({}, user_attrs=attrs)
            elif known[variant.name] != variant.overrides:
                raise TutelageError(
                    f"{self.files.path}: variant {variant.name!r} was begun with {known[variant.name]}, "
                    f"not {variant.overrides}; give the new one its own name"
                )

    # --- the trials

    def work(self) -> None:
        """Run trials until none is left, also those that are released by other processes that die."""
        shared = self._shared_choices()
        failures, waiting = 0, False
        while True:
            claim, others = self._next()
            if claim:
                failures = 0 if self._run(claim, shared) else failures + 1
                waiting = False
            elif not others:
                return
            else:
                if not waiting:
                    self.progress.say(f"waiting for {others} trials that other processes work on")
                waiting = True
                time.sleep(POLL_SECONDS)
            if failures == MAX_FAILURES:
                raise TutelageError(
                    f"{self.files.path}: the last {failures} trials failed (see {self.files.markdown.name}); "
                    "`tutelage resume` on one of them shows why; then continue with the same command"
                )

    def _shared_choices(self) -> dict[str, Any]:
        """Choose precision and batch size of all trials by one measurement: chance does not affect their ranking."""
        base, run = self.plan.base.train, Run(self.files.base)
        if base.precision != "auto" and base.batch_size != AUTO:
            return {}
        with FileLock(self.files.claims / "base.lock"):
            if not run.preflight.exists():
                describe(run, self.plan.base, versions(self.command) | {"seeds": 1})
                with run.held():
                    prepared = prepare(self.plan.base, run, self.progress, self.files.shared)
                    if base.precision == "auto":  # trials name it, and so share these fits
                        prepared = with_measured_precision(prepared)
                    preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
        shared = {"train.precision": entry(run.preflight, "precision", "chosen")}
        if base.batch_size == AUTO:
            shared["train.batch_size"] = choices_of(run)["train.batch_size"]["value"]
        return shared

    def _next(self) -> tuple[Claim | None, int]:
        """Claim the next trial, first of all one whose process died; also return how many others are worked on."""
        with FileLock(self.files.lock):
            trials = self.study.get_trials(deepcopy=False)
            others = 0
            for frozen in trials:
                if frozen.state == TrialState.RUNNING:
                    lock = self._lock(frozen.number)
                    if not _free(lock):
                        others += 1
                    elif claim := self._take_over(frozen, lock):
                        return claim, others
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            begun = len(trials) - len(waiting)
            if (self.plan.trials and begun >= self.plan.trials) or not (waiting or self.plan.space):
                return None, others
            self.study.sampler = self._sampler(begun)
            trial = self.study.ask()  # waiting ones come first
            lock = self._lock(trial.number)
            lock.acquire()
            return self._claim(trial, lock), others

    def _take_over(self, frozen: FrozenTrial, lock: FileLock) -> Claim | None:
        trial = optuna.Trial(self.study, frozen._trial_id)
        deaths = len(frozen.user_attrs.get("claims", [])) - frozen.user_attrs.get("stops", 0)
        if deaths >= MAX_DEATHS:
            self._fail(trial, f"{deaths} processes died in it")
            lock.release()
            return None
        self.progress.say(f"trial {frozen.number} was left by a process that ended; resuming it")
        return self._claim(trial, lock)

    def _claim(self, trial: optuna.Trial, lock: FileLock) -> Claim:
        """Record the process that works on a trial, and return the trial with its overrides."""
        attrs = trial.user_attrs
        mark = {"host": platform.node(), "pid": os.getpid(), "at": time.time()}
        trial.set_user_attr("claims", [*attrs.get("claims", []), mark])
        if "name" in attrs:
            return Claim(trial, attrs["name"], attrs["overrides"], lock)
        overrides = {key: value_of(_suggest(trial, key, space)) for key, space in self.plan.space.items()}
        return Claim(trial, SEARCHED, overrides, lock)

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.files.claims / f"{number:03d}.lock")

    def _sampler(self, number: int) -> BaseSampler:
        """Make a sampler seeded by the trial's number, so that samples do not depend on the process or its start."""
        seed = (self.plan.seed + number) % 2**32
        return RandomSampler(seed) if self.plan.sampler == "random" else TPESampler(seed=seed)

    def _run(self, claim: Claim, shared: dict[str, Any]) -> bool:
        """Run a trial, record its result, and return whether it finished."""
        run = Run(self.files.trials / claim.directory)
        settings = (
            ", ".join(f"{key}={value}" for key, value in claim.overrides.items()) or "the same as the base"
        )
        self.progress.say(f"trial {claim.trial.number} ({claim.name}): {settings}")
        try:
            recipe = self.plan.recipe(shared | claim.overrides | {"name": claim.directory})
            describe(run, recipe, versions(self.command) | {"seeds": 1})
            recipe = load_recipe(run.recipe)
            # a study compares trials with each other, and those with a weak teacher are a result too
            distill(recipe, run, self.progress, self.files.shared, stop_at_weak_teacher=False)
            merit = kept_candidate(run)["val"][self.plan.base.selection.metric]
        except (Interrupted, KeyboardInterrupt):
            with FileLock(self.files.lock):
                claim.trial.set_user_attr("stops", claim.trial.user_attrs.get("stops", 0) + 1)
            raise
        except Exception as error:  # a trial that fails does not end the study
            if not isinstance(error, TutelageError):
                traceback.print_exc()
            with FileLock(self.files.lock):
                self._fail(claim.trial, one_line(error))
            merit = None
        else:
            with FileLock(self.files.lock):
                self.study.tell(claim.trial, merit)
        finally:
            claim.lock.release()
        self.summary()
        return merit is not None

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        self.progress.say(f"trial {trial.number} failed: {reason}")
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    # --- the results

    def summary(self) -> Ranking:
        """Rank the finished trials, and write study.json and study.md."""
        with FileLock(self.files.lock):
            entries = [self._entry(t) for t in self.study.get_trials(deepcopy=False)]
            metric = self.plan.base.selection.metric
            begun = [e for e in entries if e]
            found = ranking(self.plan.name, metric, begun, self.figures, self.plan.against)
            write_json(self.files.json, found.record())
            write_text(self.files.markdown, found.markdown())
        return found

    def _entry(self, trial: FrozenTrial) -> Entry | None:
        if trial.state == TrialState.WAITING:
            return None
        attrs = trial.user_attrs
        name = attrs.get("name", SEARCHED)
        overrides = attrs.get("overrides") or {key: value_of(value) for key, value in trial.params.items()}
        run = Run(self.files.trials / _directory(trial.number, name))
        running = trial.state == TrialState.RUNNING
        # a failed trial may have been finished by hand since
        state: Reached = "running" if running else "done" if run.comparison.exists() else "failed"
        return Entry(trial.number, name, overrides, run, state, attrs.get("reason"), attrs.get("variant", ""))


def _free(lock: FileLock) -> bool:
    """Acquire a lock if it is free; return whether it was."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _directory(number: int, name: str) -> str:
    return f"{number:03d}-{name}"


def _storage(plan: Plan, files: StudyFiles) -> BaseStorage:
    if plan.storage:
        try:
            return RDBStorage(plan.storage)
        except Exception as error:  # SQLAlchemy's, the driver's or Optuna's own
            raise TutelageError(
                f"storage {plan.storage!r}: cannot be opened ({one_line(error)[:200]})"
            ) from None
    _drop_incomplete_line(files.journal)
    path = str(files.journal.resolve())
    return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))


def _drop_incomplete_line(journal: Path) -> None:
    """Remove an incomplete line at the end, left by a full disk or a power cut: Optuna would stop reading there."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)


def _suggest(trial: optuna.Trial, key: str, space: BaseDistribution) -> Any:
    """Return the trial's value of a key; Optuna samples it once and then always returns the same one."""
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(key, space.choices)
    if isinstance(space, IntDistribution):
        return trial.suggest_int(key, space.low, space.high, step=space.step, log=space.log)
    assert isinstance(space, FloatDistribution)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)
