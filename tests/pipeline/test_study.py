"""Studies: no trial lost or run twice, shared work equals work done alone, bad input is one line."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from PIL import Image
from safetensors.torch import load_file
from tests.helpers.killing import Moment, command, started, tutelage

from tutelage.cli import main
from tutelage.core.errors import TutelageError, WeakTeacher
from tutelage.core.files import read_json, read_jsonl, write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.records import RunPredictions, TopClasses, read_predictions, write_predictions
from tutelage.core.run_dir import Run
from tutelage.distillation.stop import Interrupted
from tutelage.evaluation.paired import paired
from tutelage.evaluation.roles import Role
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.study import ranking, trials
from tutelage.pipeline.study.plan import load_study
from tutelage.pipeline.study.worker import MAX_DEATHS, StudyFiles, _Worker, run_study

DIGITS = Path(__file__).parents[2] / "recipes" / "digits-study.yaml"
QUICK = ["data.limit=100", "teacher.fit.epochs=1", "train.epochs=1", "control=false", "train.ema=0",
         "selection.interpolate=false", "selection.soup=false"]  # fmt: skip
TRIALS = 12


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["study", *arguments])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def trials_of(files: StudyFiles) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(files.journal)))
    return optuna.load_study(study_name=files.path.name, storage=storage).trials


# --- several processes, one of them killed


def start(root: Path, log: Path) -> BaseProcess:
    words = ("study", DIGITS, *QUICK, "--name", "killed", "--studies", root, "--progress", "json")
    return started(command(*words), log=log)


def kill_in_the_middle(process: BaseProcess, files: StudyFiles) -> int:
    """Kill a process while it is at a trial, once a few are done, and return that trial's number."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert process.exitcode is None, "the process ended before it could be killed"
        time.sleep(0.2)
        if len(list(files.trials.glob("*/comparison.json"))) < 3:
            continue
        os.kill(process.pid, signal.SIGSTOP)  # so that it cannot end its trial while it is looked at
        for trial in trials_of(files):
            mine = trial.user_attrs.get("claims", [{"pid": 0}])[-1]["pid"] == process.pid
            if trial.state == TrialState.RUNNING and mine:
                process.kill()
                process.join()
                return trial.number
        os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("the trials did not get anywhere")


def test_two_processes_share_the_trials_and_one_that_is_killed_loses_none(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "killed")
    first, second = (start(tmp_path, tmp_path / f"{name}.log") for name in ("first", "second"))
    try:
        left = kill_in_the_middle(first, files)
        again = start(tmp_path, tmp_path / "again.log")
        for name, process in (("again", again), ("second", second)):
            process.join(600)
            assert process.exitcode == 0, (tmp_path / f"{name}.log").read_text()
    finally:
        for process in (first, second):
            process.kill()

    tried = trials_of(files)
    assert [t.number for t in tried] == list(range(TRIALS))
    assert {t.state for t in tried} == {TrialState.COMPLETE}
    claims = {t.number: len(t.user_attrs["claims"]) for t in tried}
    assert claims == {number: 2 if number == left else 1 for number in range(TRIALS)}
    pids = {claim["pid"] for t in tried for claim in t.user_attrs["claims"]}
    assert len(pids) >= 2  # both worked
    completed = [
        row
        for row in map(json.loads, files.journal.read_text().splitlines())
        if row.get("state") == TrialState.COMPLETE
    ]
    assert len(completed) == TRIALS
    for directory in files.trials.iterdir():
        rows = [(row["stage"], row["epoch"]) for row in read_jsonl(Run(directory).metrics)]
        assert len(rows) == len(set(rows)) >= 2

    study = json.loads(files.json.read_text())
    values = [trial["val"]["top1"] for trial in study["trials"]]
    assert len(values) == TRIALS
    assert values == sorted(values, reverse=True)
    assert study["best"] == study["trials"][0]["name"]
    assert study["trials"][0]["against"]["best"] is None
    for trial in study["trials"][1:]:
        pair, best = trial["against"]["best"], study["trials"][0]
        assert pair["difference"] == pytest.approx(trial["test_top1"] - best["test_top1"])
        assert pair["low"] <= pair["difference"] <= pair["high"]
    assert all(name in files.markdown.read_text() for name in ("head-dropout", "train.lr=0.0"))


# --- who works on what (nothing is trained here)


def small(tmp_path: Path, **keys: object) -> Path:
    """A study whose trials fail at once: their images are not there."""
    base = {"data": {"train": f"folder:{tmp_path}/nowhere"}, "train": {"precision": "fp32"}}
    variants = [{"name": "one"}, {"name": "two", "train.lr": 0.1}]
    return write(tmp_path / "small.yaml", {"base": base, "variants": variants, **keys})


def worker(path: Path, root: Path) -> _Worker:
    plan = load_study(path)
    return _Worker(plan, StudyFiles(root / plan.name), Silent(), "test")


def test_a_claimed_trial_is_nobody_elses_until_its_process_is_gone(tmp_path: Path) -> None:
    path = small(tmp_path)
    one, other = worker(path, tmp_path), worker(path, tmp_path)
    first, _ = one._next()
    second, held = other._next()
    assert first
    assert second
    assert (first.name, second.name, held) == ("one", "two", 1)
    assert other._next() == (None, 2)
    first.lock.release()  # as the kernel does when a process dies
    again, held = other._next()
    assert again
    assert (again.name, held) == ("one", 0)


def test_a_trial_that_kills_its_processes_is_given_up(tmp_path: Path) -> None:
    one = worker(small(tmp_path, trials=1), tmp_path)
    for _ in range(MAX_DEATHS):
        claim, _ = one._next()
        assert claim
        claim.lock.release()
    assert one._next() == (None, 0)
    (trial, _waiting) = one.study.trials
    assert trial.state == TrialState.FAIL
    assert "died" in trial.user_attrs["reason"]


def test_a_trial_that_is_stopped_politely_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted

    path = small(tmp_path)
    monkeypatch.setattr("tutelage.pipeline.study.worker.distill", stop)
    for _ in range(MAX_DEATHS + 1):  # being stopped is no death
        with pytest.raises(Interrupted):
            run_study(load_study(path), tmp_path, Silent(), "test")
    claim, held = worker(path, tmp_path)._next()
    assert claim
    assert (claim.name, held) == ("one", 0)
    assert load_recipe(Run(tmp_path / "small" / "trials" / "000-one").recipe).name == "000-one"


@pytest.mark.parametrize("station", ["prepare", "train_student"])  # in the loop, and elsewhere
def test_a_terminated_study_says_how_to_go_on(station: str, tmp_path: Path) -> None:
    words = ["study", DIGITS, *QUICK, "--trials", "1", "--studies", tmp_path, "--progress", "json"]
    moment = Moment(station, 300, signal.SIGTERM)
    ended = tutelage(*words, log=tmp_path / "log", moment=moment)
    assert ended.code == 130, ended.output
    assert "continue with the same command" in ended.output.splitlines()[-1]
    assert "Traceback" not in ended.output
    trial = trials_of(StudyFiles(tmp_path / "digits-study"))[0]
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs["stops"] == len(trial.user_attrs["claims"]) == 1  # it is no death


def test_each_finished_trial_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking after each trial used to read all trials again."""
    calls = {"read": 0, "paired": 0}

    def finish(recipe: Recipe, run: Run, *_: object, **__: object) -> None:
        top = np.array([[number % 2, 2] for number in range(8)])
        top[: len(run.path.parts[-1]) % 3, 0] = 2
        roles = {role: TopClasses(top, np.full((8, 2), 0.5)) for role in ("distilled", "start", "control")}
        write_predictions(
            run.predictions,
            RunPredictions(np.array(list("abcdefgh")), np.arange(8) % 2, ("x", "y", "z"), roles),
        )
        value = float(recipe.train.epochs)
        write_json(
            run.candidates,
            {"candidates": [{"name": "last", "kept": True, "val": {"top1": value, "nll": 1.0}}]},
        )
        write_json(run.comparison, {"rows": [{"role": "distilled", "top1": value, "nll": 1.0}]})

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            calls[name] += 1
            return call(*arguments)

        return wrapped

    monkeypatch.setattr("tutelage.pipeline.study.worker.distill", finish)
    monkeypatch.setattr(trials, "read_predictions", counted("read", read_predictions))
    monkeypatch.setattr(trials, "paired", counted("paired", paired))
    variants = [{"name": f"v{epochs}", "train.epochs": epochs} for epochs in (9, 1, 2, 3, 4, 5, 6, 7)]
    path = small(tmp_path, variants=variants)
    found = run_study(load_study(path), tmp_path, Silent(), "test")
    assert [one.entry.name for one in found.done] == ["v9", "v7", "v6", "v5", "v4", "v3", "v2", "v1"]
    assert calls == {"read": 8, "paired": 3 * 8 - 1}  # start, control and best; the best has no better one
    one = worker(path, tmp_path)
    assert one.summary().record() == found.record()
    changed = Run(tmp_path / "small" / "trials" / "001-v1")
    write_json(
        changed.candidates,
        {"candidates": [{"name": "best", "kept": True, "val": {"top1": 99.0, "nll": 1.0}}]},
    )
    assert one.summary().done[0].entry.name == "v1"  # a trial that was written again is read again


def test_searched_values_do_not_depend_on_who_asks(tmp_path: Path) -> None:
    search = {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "view.crop_scale": [[0.2, 1.0], [1.0, 1.0]],
    }
    path = small(tmp_path, variants=[], search=search, trials=4)
    tried = []
    for root, workers in ((tmp_path / "a", 1), (tmp_path / "b", 2)):
        crew = [worker(path, root) for _ in range(workers)]
        claims = [crew[number % workers]._next()[0] for number in range(4)]
        assert all(claims)
        tried.append([claim.overrides for claim in claims if claim])
        assert crew[0]._next() == (None, 4)
    assert tried[0] == tried[1]
    assert len({entry["train.lr"] for entry in tried[0]}) == 4
    assert all(1e-4 <= entry["train.lr"] <= 1e-2 for entry in tried[0])
    assert {tuple(entry["view.crop_scale"]) for entry in tried[0]} <= {(0.2, 1.0), (1.0, 1.0)}


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    search = {"train.lr": [0.1, 0.2], "loss.name": ["kl", "dist", "dkd"]}
    plan = load_study(small(tmp_path, variants=[{"name": "base"}], search=search, sampler="grid"))
    found = {(v.overrides.get("train.lr"), v.overrides.get("loss.name")) for v in plan.variants}
    assert found == {(None, None), *((lr, name) for lr in (0.1, 0.2) for name in ("kl", "dist", "dkd"))}


def test_a_grid_of_nothing_adds_no_trial(tmp_path: Path) -> None:
    plan = load_study(small(tmp_path, variants=[{"name": "base"}], sampler="grid"))
    assert [v.name for v in plan.variants] == ["base"]


def test_a_failed_trial_is_a_line_of_the_table(tmp_path: Path) -> None:
    path = small(tmp_path)
    found = run_study(load_study(path), tmp_path, Silent(), "test")
    assert [(e.name, e.state) for e in found.others] == [("one", "failed"), ("two", "failed")]
    assert "nowhere" in found.others[0].reason
    assert found.sentence() == "No trial of small is finished yet."
    three = small(tmp_path, name="three", variants=[{"name": f"v{n}"} for n in range(4)])
    with pytest.raises(TutelageError, match="the last 3 trials failed"):
        run_study(load_study(three), tmp_path, Silent(), "test")


def test_a_trial_with_a_weak_teacher_is_finished(
    tmp_path: Path, tiny: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weak(*_: object) -> None:
        raise WeakTeacher("the teacher has nothing to teach")

    monkeypatch.setattr("tutelage.pipeline.run.check_teacher", weak)
    tiny["train"]["epochs"] = tiny["teacher"]["fit"]["epochs"] = 1
    tiny["data"]["limit"] = 64
    path = write(tmp_path / "weak.yaml", {"base": tiny, "variants": [{"name": "one"}]})
    found = run_study(load_study(path), tmp_path, Silent(), "test")
    assert [ranked.entry.name for ranked in found.done] == ["one"]
    assert not found.others


def test_a_database_keeps_the_trials_too(tmp_path: Path) -> None:
    path = small(tmp_path, storage=f"sqlite:///{tmp_path}/trials.db")
    for _ in range(2):  # the second finds them done
        assert len(run_study(load_study(path), tmp_path / "here", Silent(), "test").others) == 2
    with pytest.raises(TutelageError, match="was begun in another directory"):
        run_study(load_study(path), tmp_path / "elsewhere", Silent(), "test")


def test_a_line_torn_by_a_full_disk_is_taken_away(tmp_path: Path) -> None:
    path = small(tmp_path)
    one = worker(path, tmp_path)
    with open(one.files.journal, "ab") as stream:
        stream.write(b'{"op_code": 8, "worker')
    assert [t.user_attrs["name"] for t in worker(path, tmp_path).study.trials] == ["one", "two"]
    assert one._next()[0]


# --- what is shared


def test_what_is_shared_is_what_a_run_alone_comes_to(tmp_path: Path, tiny: dict) -> None:
    tiny["train"] |= {"epochs": 1, "precision": "auto"}
    tiny["data"] |= {"limit": 100}
    variants = [{"name": "warm", "loss.temperature": 1.0}, {"name": "hot", "loss.temperature": 4.0}]
    path = write(tmp_path / "sharing.yaml", {"base": tiny, "variants": variants})
    run_study(load_study(path), tmp_path, Silent(), "test")
    files = StudyFiles(tmp_path / "sharing")
    assert len(list(files.shared.glob("teacher-fit-*.safetensors"))) == 1
    controls = list(files.shared.glob("control-*.safetensors"))
    assert len(controls) == 2  # as trained and as chosen: no temperature in it

    trial = Run(files.trials / "001-hot")
    recipe = load_recipe(trial.recipe)
    chosen = read_json(Run(files.base).preflight)["precision"]["chosen"]
    assert recipe.train.precision == chosen  # measured once for all trials
    alone = begin(recipe, tmp_path / "alone", "test")
    distill(recipe, alone, Silent())
    for mine, its in ((alone.student, trial.student), (alone.control, trial.control)):
        one, other = load_file(mine), load_file(its)
        assert all(tensor.equal(other[name]) for name, tensor in one.items())
    stages = [row["stage"] for row in read_jsonl(trial.metrics)]
    assert stages == ["teacher-fit", "teacher-fit", "control", "distill"]
    both = [read_json(Run(files.trials / name).speed) for name in ("000-warm", "001-hot")]
    assert both[0] == both[1]  # measured once
    assert read_json(trial.comparison)["rows"][0]["latency_ms"] == both[0]["rows"][0]["latency_ms"]


def test_the_shipped_studies_are_sound() -> None:
    """Every variant of each is a recipe, and the overfitting study tries every kind of remedy."""
    plans = {path.stem: load_study(path) for path in DIGITS.parent.glob("*-study.yaml")}
    assert plans["digits-study"].trials == TRIALS
    keys = {key for variant in plans["overfitting-study"].variants for key in variant.overrides}
    assert keys >= {
        "train.weight_decay", "train.l2_sp", "view.crop_scale", "view.rotation", "view.blur", "view.greyscale",
        "student.dropout", "train.epochs", "train.lr", "loss.label_weight", "loss.temperature",
        "train.from_scratch",
    }  # fmt: skip


# --- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": []}, "unknown key 'variant'; did you mean 'variants'?"),
        ({"variants": [{"name": "x", "train.epocs": 3}]}, "variant 'x': unknown key 'train.epocs'; did you"),
        ({"variants": [{"name": "x", "train.lr": -1}]}, "variant 'x': train.lr"),
        ({"variants": [{"train.lr": 0.1}]}, "variant 1: give it a name"),
        ({"variants": [{"name": "x"}, {"name": "x"}]}, "two variants are named 'x'"),
        ({"variants": [{"name": "x", "data.split_seed": 1}]}, "variant 'x': data.split_seed decides"),
        ({"variants": [{"name": "x", "selection.metric": "nll"}]}, "variant 'x': selection.metric"),
        ({"variants": [{"name": "x", "choose.soup": True, "selection.soup": True}]}, "variant 'x': choose.soup is"),
        ({"variants": []}, "neither variants nor a search"),
        ({"base": "missing.yaml"}, "missing.yaml: no such"),
        ({"base": {"train": {"lr": "high"}}}, "base: train.lr"),
        ({"search": {"train.lr": {"low": 1, "high": 0.1}}, "trials": 3}, "search.train.lr"),
        ({"search": {"train.lr": {"lo": 1, "high": 2}}, "trials": 3}, "search.train.lr: unknown key 'lo'; did you"),
        ({"search": {"train.lr": {"low": 0.0, "high": 1.0}}, "trials": 3}, "search.train.lr"),
        ({"search": {"train.lr": 0.1}, "trials": 3}, "give a list of choices, or low and high"),
        ({"search": {"train.lr": [0.1]}}, "trials: set the number"),
        ({"search": {"train.lr": {"low": 0.1, "high": 0.2}}, "sampler": "grid"}, "a grid needs a list"),
        ({"seed": -1}, "seed: -1: write a number of at least 0, such as seed: 0"),
        ({"seeds": 0}, "seeds: 0"),
        ({"seeds": 2, "search": {"train.lr": [0.1]}, "trials": 3}, "seeds: variants and a grid have several seeds"),
        ({"seeds": 2, "variants": [{"name": "x", "train.seed": 5}]}, "variant 'x': sets train.seed, which --seeds"),
        ({"seeds": 2, "variants": [{"name": "x"}, {"name": "x-seed-1"}]}, "'x-seed-1': a variant with another seed"),
        ({"against": "three"}, "against 'three': no variant has this name; there are one, two"),
        ({"storage": "oracle9://x"}, "storage 'oracle9://x': cannot be opened"),
    ],
)  # fmt: skip
def test_bad_study_is_refused_in_one_line(
    change: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([str(small(tmp_path, **change)), "--studies", str(tmp_path / "studies")], capsys)
    assert words in line
    assert not list(tmp_path.glob("studies/*/trials"))


def test_a_study_without_labels_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    path = small(tmp_path, variants=[{"name": "x", "train.lr": 1e-3}])
    tree = yaml.safe_load(path.read_text())
    tree["base"]["data"] = {"train": str(tmp_path / "flat")}
    line = refused([str(write(path, tree)), "--studies", str(tmp_path / "studies")], capsys)
    assert "has no labels, by which a study ranks its trials" in line


def test_a_study_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its file, its overrides and its record name the keys as they were named then."""
    base = {"choose": {"metric": "nll"}, "student": {"head_fit": {"mixed": True}}}
    old = [{"name": "one", "choose.soup": False}]
    search = {"choose.interpolate": [True, False]}
    path = small(tmp_path, base=base, variants=old, search=search, trials=3)
    plan = load_study(path, ["choose.soup=true"])
    assert (plan.base.selection.metric, plan.base.selection.soup) == ("nll", True)
    assert plan.recipe(plan.variants[0].overrides).selection.soup is False
    assert plan.recipe({"choose.interpolate": False}).selection.interpolate is False

    record = worker(path, tmp_path).files.record
    tree = yaml.safe_load(record.read_text())
    tree["base"]["choose"] = tree["base"].pop("selection")
    tree["base"]["student"]["head_fit"]["mixed"] = tree["base"]["student"]["head_fit"].pop("use_mixup")
    record.write_text(yaml.safe_dump(tree))
    assert len(worker(path, tmp_path).study.trials) == 1


def test_missing_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml: no such" in refused([str(tmp_path / "none.yaml")], capsys)


def test_an_existing_study_of_another_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(small(tmp_path))
    worker(Path(path), tmp_path)
    assert "begun with base.train.epochs='auto', not 3" in refused(
        [path, "train.epochs=3", "--studies", str(tmp_path)], capsys
    )
    changed = small(tmp_path, variants=[{"name": "one", "train.lr": 1.0}])
    assert "variant 'one' was begun with {}" in refused([str(changed), "--studies", str(tmp_path)], capsys)
    more = small(tmp_path, variants=[{"name": "one"}, {"name": "three"}])
    assert [t.user_attrs["name"] for t in worker(more, tmp_path).study.trials] == ["one", "two", "three"]


def ranked(top1: float = 50.0, control: bool = True, is_probe: bool = False) -> trials.Ranked:
    """A finished trial of one image of class 0, which the student and the start have right and the control wrong."""
    by_role = {Role.DISTILLED: np.array([0]), Role.START: np.array([0]), Role.CONTROL: np.array([1])}
    test = {Role.DISTILLED: {"top1": 60.0, "nll": 1.0}, Role.START: {"top1": top1, "nll": 2.0}}
    if control:
        test[Role.CONTROL] = {"top1": 55.0, "nll": 1.5}
    else:
        del by_role[Role.CONTROL]
    one = trials.Entry(0, "a", {}, Run(Path("studies/s/trials/000-a")), "done")
    top = trials.TopClass(np.array(["0"]), np.array([0]), by_role)
    return trials.Ranked(one, {"top1": 1.0, "nll": 1.0}, "last", test, False, is_probe, top)


def test_the_note_below_the_table_has_the_models_that_trials_are_compared_with() -> None:
    def note(*given: trials.Ranked) -> str:
        return ranking.Ranking("a", "top1", list(given), []).note().partition(" On test, ")[2]

    assert note() == ""
    assert note(ranked()) == "top-1 (NLL): the start 50.00 (2.000); labels only 55.00 (1.500)."
    assert note(ranked(control=False), ranked(control=False)) == "top-1 (NLL): the start 50.00 (2.000)."
    found = note(ranked(9.5, is_probe=True), ranked(10.25))
    assert found == "top-1 (NLL): the start (a linear probe) 9.50 to 10.25; labels only 55.00 (1.500)."


def test_a_terminal_shows_the_difference_from_the_control_and_from_the_start_without_one() -> None:
    def columns(control: bool, every: bool) -> dict[str, list[str]]:
        figures = trials.Figures()
        one = ranked(control=control)
        start, control_ = (figures.pair(one, one, role) for role in (Role.START, Role.CONTROL))
        return ranking.Ranking("a", "top1", [replace(one, start=start, control=control_)], []).columns(every)

    assert "Against start" not in columns(control=True, every=False)
    assert columns(control=True, every=False)["Against control"][0].startswith("+100.00 [")
    assert "Against control" not in columns(control=False, every=False)
    assert columns(control=False, every=False)["Against start"][0].startswith("+0.00 [")
    every = columns(control=True, every=True)
    assert every["NLL"] == ["1.000"]
    assert {"Against start", "Against control"} <= every.keys()
    failed = trials.Entry(1, "b", {}, Run(Path("b")), "failed", "no memory")
    table = ranking.Ranking("a", "top1", [ranked()], [failed]).columns()
    assert [cells[1] for cells in table.values()] == ["1", "b", "failed", "", "", "no memory"]
