"""Two processes do what one does: the same losses, each image counted once, one writer, the same resume."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from tests.conftest import TINY
from tests.helpers.killing import ONE_THREAD, Moment, free_port, together, tutelage

from tutelage.core.files import entry, read_json, read_jsonl
from tutelage.core.recipe import load_recipe
from tutelage.core.run_dir import Run
from tutelage.models.registry import load_model
from tutelage.pipeline.run import begin

ROUNDING = 2e-4  # sums of float32 in another order, over two epochs of AdamW


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No dropout, and running statistics that stay: a BatchNorm would see half of the batch."""
    tree = copy.deepcopy(TINY)
    tree["teacher"]["fit"] = "no"
    tree["student"] |= {"dropout": 0.0}
    tree["data"] |= {"limit": 97}  # val and test have an odd number of images: the last batches are uneven
    tree["view"] |= {"mixup": 0.2, "mix_probability": 0.5}  # accuracy is that of images that are not mixed
    tree["train"] |= {"batch_size": 16, "frozen_batchnorm": True, "ema": 0.9, "clip_grad": 1.0, "lr": 1e-3}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def one(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("one")
    ended = tutelage("distill", recipe, "--name", "run", "--runs", root, log=root / "log")
    assert ended.code == 0, ended.output
    return Run(root / "run")


@pytest.fixture(scope="module")
def two(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    root = tmp_path_factory.mktemp("two")
    ended = launched("distill", recipe, "--name", "run", "--runs", root, "--progress", "json")
    assert ended.returncode == 0, ended.stderr
    return Run(root / "run"), ended.stdout


def launched(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`tutelage ...` in two processes, as a user starts them.

    With torchrun, since `accelerate launch --cpu` starts one process only, whatever --num_processes is. It takes
    many seconds, since three processes import PyTorch: other tests have `together`.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "tutelage", *map(str, arguments)]
    environment = os.environ | ONE_THREAD | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def in_both(*arguments: str | Path, log: Path) -> str:
    """`tutelage ...` in two processes that succeed; return what they wrote."""
    ended = together(*arguments, log=log, port=free_port())
    written = "".join(one.output for one in ended)
    assert [one.code for one in ended] == [0, 0], written
    return written


def processes(run: Run) -> int:
    return int(entry(run.versions, "machine", "processes"))


def test_the_runs_that_are_compared_had_one_and_two_processes(one: Run, two: tuple[Run, str]) -> None:
    assert (processes(one), processes(two[0])) == (1, 2)


def losses(run: Run) -> list[tuple[Any, ...]]:
    return [
        (row["stage"], row["epoch"], *row["loss"].values(), row["val"]["nll"], row["ema_val"]["nll"])
        for row in read_jsonl(run.metrics)
    ]


def test_the_same_global_batch_gives_the_same_losses(one: Run, two: tuple[Run, str]) -> None:
    alone, shared = losses(one), losses(two[0])
    assert [row[:2] for row in shared] == [row[:2] for row in alone]
    for row_alone, row_shared in zip(alone, shared, strict=True):
        assert row_shared[2:] == pytest.approx(row_alone[2:], abs=ROUNDING)


def test_each_image_is_counted_once(one: Run, two: tuple[Run, str]) -> None:
    with np.load(one.predictions) as alone, np.load(two[0].predictions) as shared:
        assert len(alone["ids"]) % 2 == 1
        assert shared["ids"].tolist() == alone["ids"].tolist()
        for role in ("teacher", "start"):  # untrained by this run: the very same networks
            assert shared[f"{role}_prob5"] == pytest.approx(alone[f"{role}_prob5"], abs=1e-5)
        images = len(alone["ids"])
    assert entry(two[0].comparison, "test", "n") == entry(one.comparison, "test", "n") == images


def test_training_accuracy_is_that_of_all_processes(one: Run, two: tuple[Run, str]) -> None:
    alone, shared = (next(iter(read_jsonl(run.metrics)))["train_top1"] for run in (one, two[0]))
    assert shared == pytest.approx(alone, abs=100 / 96)  # one image may tip over by rounding


def test_one_process_writes_and_speaks(two: tuple[Run, str]) -> None:
    run, output = two
    rows = [(row["stage"], row["epoch"]) for row in read_jsonl(run.metrics)]
    assert rows == [("control", 1), ("control", 2), ("distill", 1), ("distill", 2)]
    assert len(re.findall(r'"event": "table"', output)) == 1
    assert output.count("pre-flight: on val the teacher") == 1
    assert load_model(f"test_efficientnet@{run.student}").class_ids == tuple("0123456789")


def test_two_processes_killed_and_resumed_end_as_two_that_were_not(recipe: Path, tmp_path: Path) -> None:
    """BatchNorm moves here: its statistics differ between processes, and are the first one's in the end."""
    tree = yaml.safe_load(recipe.read_text())
    tree["train"] |= {"frozen_batchnorm": False, "checkpoint_minutes": 0.0005, "epochs": 1}
    tree["control"] = False
    moving = tmp_path / "recipe.yaml"
    moving.write_text(yaml.safe_dump(tree))
    for name in ("unbroken", "killed"):
        begun = ("distill", moving, "--name", name, "--runs", tmp_path, "--progress", "json")
        moment = Moment("train_student", 12_000) if name == "killed" else None
        first, second = together(*begun, log=tmp_path / f"{name}.log", port=free_port(), moment=moment)
        if moment is None:
            assert (first.code, second.code) == (0, 0), first.output + second.output
    assert first.code == -signal.SIGKILL
    assert second.code != 0
    in_both("resume", tmp_path / "killed", log=tmp_path / "killed.log")
    unbroken, killed = Run(tmp_path / "unbroken"), Run(tmp_path / "killed")
    assert killed.student.read_bytes() == unbroken.student.read_bytes()
    assert read_json(killed.candidates) == read_json(unbroken.candidates)


def test_two_heads_learn_the_same_in_one_and_two_processes(recipe: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(recipe.read_text())
    tree["loss"] |= {"two_heads": True}
    tree["teacher"] |= {"others": ["test_efficientnet@none"]}
    tree["view"] |= {"mixup": 0.0}
    tree["train"] |= {"epochs": 1}
    tree |= {"targets": {"mode": "cached"}, "control": False}
    tree["selection"] = {"interpolate": False, "soup": False}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    alone = tutelage("distill", path, "--name", "one", "--runs", tmp_path, log=tmp_path / "log")
    assert alone.code == 0, alone.output
    in_both("distill", path, "--name", "two", "--runs", tmp_path, log=tmp_path / "log")
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    for row_alone, row_shared in zip(losses(one), losses(two), strict=True):
        assert row_shared[2:] == pytest.approx(row_alone[2:], abs=ROUNDING)
    candidates = [{c["name"]: c for c in entry(run.candidates, "candidates")} for run in (one, two)]
    for name in ("last", "ema"):
        assert candidates[1][name]["share"] == candidates[0][name]["share"]
        assert candidates[1][name]["val"]["nll"] == pytest.approx(candidates[0][name]["val"]["nll"], abs=1e-3)


def test_bad_input_ends_all_processes_in_one_line(recipe: Path, tmp_path: Path) -> None:
    begun = ("distill", recipe, "train.batch_size=15", "--name", "run", "--runs", tmp_path)
    for ended in together(*begun, log=tmp_path / "log", port=free_port()):
        assert ended.code == 2
        assert ended.output.splitlines()[-1].startswith("error: train.batch_size=15: must be a multiple of 2")
        assert "Traceback" not in ended.output


@pytest.fixture
def quick(recipe: Path, tmp_path: Path) -> Path:
    """One epoch, no control."""
    tree = yaml.safe_load(recipe.read_text())
    tree["train"]["epochs"], tree["control"] = 1, False
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_several_seeds_end_in_two_processes(quick: Path, tmp_path: Path) -> None:
    """What the seeds share is locked by the first process only: locked by both, they waited for each other."""
    begun = ("distill", quick, "--seeds", "2", "--name", "run", "--runs", tmp_path, "--progress", "json")
    written = in_both(*begun, log=tmp_path / "log")
    run = Run(tmp_path / "run")
    seeds = [Run(run.path / f"seed-{seed}") for seed in (0, 1)]
    assert [processes(each) for each in (run, *seeds)] == [2, 2, 2]
    assert read_json(run.seeds)["runs"] == ["seed-0", "seed-1"]
    assert read_json(seeds[0].speed) == read_json(seeds[1].speed)  # measured once
    assert seeds[0].student.read_bytes() != seeds[1].student.read_bytes()
    assert written.count('"text": "Over 2 seeds') == 1
    assert not run.cache.exists()
    in_both("resume", run.path, log=tmp_path / "log")  # nothing is left to do


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("name=../run", "use letters, digits"),
        ("name=held", "another process works on this run"),
        ("name=full", "cannot be written"),
    ],
)
def test_an_error_of_the_first_process_ends_all_with_its_line(
    override: str, line: str, quick: Path, tmp_path: Path
) -> None:
    """The first process alone makes and locks the run, and locks what the seeds share."""
    held, full = Run(tmp_path / "held"), Run(tmp_path / "full")
    for run in (held, full):
        begin(load_recipe(quick, [f"name={run.path.name}"]), tmp_path, "test", seeds=2)
    full.cache.write_text("a file where a directory has to be made")
    name = override.removeprefix("name=")
    command = ("distill", quick, override) if "/" in name else ("resume", tmp_path / name)
    seed = Run(held.path / "seed-0")
    seed.path.mkdir()
    with seed.held():
        ended = together(*command, log=tmp_path / "log", port=free_port())
    for one in ended:
        assert one.code == 2, one.output
        assert line in one.output.splitlines()[-1]
        assert "Traceback" not in one.output


def test_a_list_with_parts_and_left_out_images_is_read_by_both_processes_alike(tmp_path: Path) -> None:
    """Of the list and of `data.exclude`, each process reads its own copy; and class weights are those of all images."""
    digits = load_digits()
    rows = ["file,kind,split"]
    for number in range(120):
        pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        part = ("test", "val", "train", "train")[number % 4]
        rows.append(f"{number}.png,{'' if number in (2, 7) else digits.target[number] % 3},{part}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    (tmp_path / "leave-out.txt").write_text("3.png\n5.png  # val\n2.png\n")
    tree = copy.deepcopy(TINY)
    tree["data"] = {"train": f"{tmp_path}/list.csv?label=kind", "workers": 0}
    tree["data"] |= {"exclude": str(tmp_path / "leave-out.txt")}
    tree["teacher"]["fit"] = "no"
    tree["student"] |= {"dropout": 0.0}
    tree["loss"] |= {"class_weights": "effective"}
    tree["measure"] = {"robustness": True}
    tree["train"] |= {"batch_size": 16, "frozen_batchnorm": True, "epochs": 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))

    ended = tutelage("distill", recipe, "--name", "one", "--runs", tmp_path, log=tmp_path / "log")
    assert ended.code == 0, ended.output
    in_both("distill", recipe, "--name", "two", "--runs", tmp_path, log=tmp_path / "log")
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    splits = read_json(two.splits)
    assert splits == read_json(one.splits)
    assert splits["excluded"]["images"] == {"train": 2, "val": 1}
    assert splits["parts"]["train"]["size"] == 60 - 2 - 1  # 7 has no class
    assert (processes(one), processes(two)) == (1, 2)
    teacher = "top1", "teacher"  # untrained by this run
    assert entry(two.robustness, *teacher) == pytest.approx(entry(one.robustness, *teacher))
    assert entry(two.robustness, "n") == entry(one.robustness, "n") == 30
    for alone, shared in zip(losses(one), losses(two), strict=True):
        assert shared == (*alone[:2], *(pytest.approx(value, abs=ROUNDING) for value in alone[2:]))
