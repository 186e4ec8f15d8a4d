"""`make gpu` on a CPU: each check passes where it should and fails where it should, and no part is cut silently."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu, gpu_checks
from benchmarks.speed import Contenders, Setting

CPU = torch.device("cpu")

# --- the checks


def test_losses_are_compared_and_a_device_that_computes_another_loss_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_checks, "names", lambda: ["kl", "cross_entropy", "feature_mse"])
    found = gpu_checks.losses(CPU, small=True)
    assert found["passed"]
    assert found["checks"].keys() == {"kl", "feature_mse"}
    steps, calls = gpu_checks.train_steps, []

    def wrong_first(*args: Any) -> gpu_checks.Steps:
        result = steps(*args)
        calls.append(args)
        if len(calls) == 1:
            result.gradient *= 1.01
        if len(calls) == 3:
            result.losses[2] = float("nan")
        return result

    monkeypatch.setattr(gpu_checks, "train_steps", wrong_first)
    found = gpu_checks.losses(CPU, small=True)
    assert not found["passed"]
    assert found["failed"] == list(found["checks"])
    json.dumps(found, allow_nan=False)


def test_a_fold_that_moves_the_logits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.fold(CPU, small=True)["passed"]
    real = gpu_checks._fold

    def spoilt(module: torch.nn.Module) -> int:
        count = real(module)
        with torch.no_grad():
            next(layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)).weight.mul_(1.1)
        return count

    monkeypatch.setattr(gpu_checks, "_fold", spoilt)
    found = gpu_checks.fold(CPU, small=True)
    assert not found["passed"]
    assert found["differences"]["test_resnet"]["with TF32"] > 1e-3


def test_a_resumed_stage_is_the_same_and_one_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic = []
    real = gpu_checks._train

    def train(*args: Any) -> Any:
        deterministic.append(torch.are_deterministic_algorithms_enabled())
        return real(*args)

    monkeypatch.setattr(gpu_checks, "_train", train)
    assert gpu_checks.resume(CPU, small=True) == {"passed": True, "stopped_at": [8], "differing": []}
    assert deterministic == [True] * 3
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(gpu_checks.StopAt, "step", lambda *_: None)
    found = gpu_checks.resume(CPU, small=True)
    assert (found["passed"], found["differing"]) == (False, ["step 8: it was not stopped"])


def test_weights_that_differ_in_one_bit_are_named() -> None:
    one = gpu_checks.Trained([], {"last": {"a": torch.ones(2), "b": torch.ones(2)}})
    other = gpu_checks.Trained([], {"last": {"a": torch.ones(2), "b": torch.tensor([1, 1 + 2**-23])}})
    assert gpu_checks.differences(one, other) == ["last b"]


def test_waits_are_counted_by_step_and_place() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            for line in (3, 3, 7):
                warnings.warn_explicit(
                    f"{gpu_checks.SYNCHRONISED} (at x.cpp)", UserWarning, "/a/src/tutelage/loop.py", line
                )
            warnings.warn("another", stacklevel=1)
    assert gpu_checks.waits_per_step(caught, 5) == {
        "waits_per_step": 3.0,
        "places": {"tutelage/loop.py:3": 2.0, "tutelage/loop.py:7": 1.0},
    }


def test_steps_of_the_second_epoch_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(device: torch.device, place: Path, progress: gpu_checks.Seen) -> None:
        for number in range(2 * gpu_checks.STEPS):
            for _ in range(10 if number <= gpu_checks.STEPS else 2):  # the first steps wait more often
                warnings.warn_explicit(gpu_checks.SYNCHRONISED, UserWarning, "loop.py", 1)
            progress.step({}, 16)

    monkeypatch.setattr(gpu_checks, "_train", train)
    assert gpu_checks.waits(CPU, small=True)["waits_per_step"] == 2


def test_deployment_is_timed_and_a_way_with_other_answers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of its time is the export to ONNX."""
    pytest.importorskip("onnxruntime")
    found = gpu_checks.deployed(CPU, small=True)
    assert found["passed"]
    assert [row["run_by"] for row in found["rows"]] == [
        "PyTorch, fp32", "PyTorch, bf16", "ONNX Runtime, CPUExecutionProvider",
    ]  # fmt: skip
    assert all(row["ms"].keys() == {"1", "16"} for row in found["rows"])
    assert gpu.finding("deployed", found).startswith("one image: ")
    real = gpu_checks.ways

    def wrong(*args: Any) -> list[Any]:
        *others, last = real(*args)
        return [
            *others,
            replace(last, make=lambda folder: lambda images: 1.5 * others[0].make(folder)(images)),
        ]

    monkeypatch.setattr(gpu_checks, "ways", wrong)
    found = gpu_checks.deployed(CPU, small=True)
    assert (found["passed"], found["failed"]) == (False, ["ONNX Runtime, CPUExecutionProvider"])
    monkeypatch.setattr(gpu_checks, "ways", lambda *args: real(*args)[:2])
    assert not gpu_checks.deployed(CPU, small=True)["passed"]  # nothing but PyTorch
    json.dumps(found, allow_nan=False)


# --- the parts


def parts(monkeypatch: pytest.MonkeyPatch, **code: str) -> None:
    """Let each part run some Python, in which `write` writes its result."""

    def command(
        name: str, device: str, small: bool, directory: Path, seconds: float, result: Path
    ) -> list[str]:
        write = f"import json, time; write = lambda **x: open({str(result)!r}, 'w').write(json.dumps(x)); "
        return [sys.executable, "-c", write + code[name.replace("-", "_")]]

    monkeypatch.setattr(gpu, "command", command)


def test_a_part_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(monkeypatch, losses="write(passed=False)", fold="raise SystemExit(3)", waits="write(passed=True)")
    found = gpu.run_all("cpu", True, ["losses", "fold", "waits"], tmp_path)
    assert [part["passed"] for part in found["parts"].values()] == [False, False, True]
    assert not found["passed"]
    assert "exit code 3" in found["left_out"]["fold: what came after the last result"]


def test_a_part_that_takes_too_long_is_ended_and_named_and_its_figures_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = "write(passed=True, failed=[], left_out={'tutelage live': 'no time was left'}); time.sleep(60)"
    parts(monkeypatch, resume=result, b3_b1=result)
    monkeypatch.setattr(gpu, "SECONDS", {"resume": 6.0, "b3-b1": 6.0})
    found = gpu.run_all("cpu", True, ["resume", "b3-b1"], tmp_path)
    assert found["seconds"] < 40
    assert [part["passed"] for part in found["parts"].values()] == [False, True]
    assert found["left_out"]["b3-b1: tutelage live"] == "no time was left"
    assert "was ended after" in found["left_out"]["b3-b1: what came after the last result"]


def test_time_that_is_left_over_goes_to_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(monkeypatch, losses="write(passed=True)", fold="time.sleep(3); write(passed=True)")
    monkeypatch.setattr(gpu, "SECONDS", {"losses": 30.0, "fold": 0.5})
    assert gpu.run_all("cpu", True, ["losses", "fold"], tmp_path)["passed"]


def test_all_parts_fit_into_nine_minutes() -> None:
    assert sum(gpu.SECONDS.values()) + 20 <= 9 * 60  # and the start of Python and the table


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_all_passed_and_the_result_lies_in_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    passed: bool,
    code: int,
) -> None:
    parts(monkeypatch, fold=f"write(passed={passed}, differences=dict(lite={{'with TF32': 4e-3}}))")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small", "--parts", "fold"])
    assert gpu.main() == code
    assert json.loads((tmp_path / "gpu.json").read_text())["passed"] is passed
    assert "lite: 4.0e-03 with TF32" in capsys.readouterr().out


# --- what is there


def test_a_machine_without_a_gpu_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finds no CUDA GPU" in line


def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"plotly": None, "pydantic": None, "timm": "1.0.3"}
    real = metadata.version
    monkeypatch.setattr(gpu, "_version", lambda name: versions[name] if name in versions else real(name))
    assert gpu.packages() == (["plotly", "pydantic"], ["timm 1.0.3 (tutelage asks for 1.0.20)"])
    line = gpu.refusal("cpu")
    assert line is not None
    assert "plotly, pydantic; " in line
    assert "\n" not in line


def test_a_checkout_that_is_not_installed_has_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_version", lambda name: None)
    environment = gpu.prepared(tmp_path)
    paths = environment["PYTHONPATH"].split(os.pathsep)
    (found,) = metadata.distributions(name="tutelage", path=[paths[2]])
    assert found.version == gpu._project()["version"]
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


# --- the figures


def test_a_contender_that_cannot_run_is_noted_and_has_no_rate() -> None:
    def missing() -> Any:
        raise ImportError("No module named 'torchdistill'")

    def too_large() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    contenders = Contenders(gpu_checks.SMALL, Path(), Setting())
    contenders.add("torchdistill", missing)
    contenders.add("plain loop", lambda: too_large)
    assert contenders.blocks.keys() == {"plain loop"}
    assert gpu_checks.math.isnan(contenders.blocks["plain loop"]())
    assert contenders.errors == {
        "torchdistill": "No module named 'torchdistill'",
        "plain loop": "CUDA out of memory",
    }


@pytest.mark.slow
def test_a_whole_run_and_figures_are_made_in_processes_of_their_own(tmp_path: Path) -> None:
    found = gpu.run_all("cpu", True, ["stations", "lite2-lite0"], tmp_path)
    assert found["passed"]
    assert found["parts"]["stations"]["top1"].keys() >= {"teacher", "control", "distilled"}
    assert len(found["parts"]["lite2-lite0"]["summary"]) == 8
    assert found["left_out"].keys() == {"stations: the deployed files"}
