"""A run directory with everything in it, from a real, small distillation: perceptrons on 8x8 digits.

The networks are not timm's, so that it takes a second or two; every figure in it is computed.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from tutelage.core.files import append_jsonl, read_json, write_bytes, write_json, write_text
from tutelage.core.recipe import Recipe, dump_recipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.input_spec import InputSpec
from tutelage.data.splits import Splits, Subset, make_splits
from tutelage.evaluation.paired import paired
from tutelage.evaluation.quality import quality
from tutelage.evaluation.table import Row, Table
from tutelage.evaluation.verdict import outcome

STAGES = ("preflight", "control", "distill", "choose", "measure", "diagnose")


def make_run(
    root: Path, name: str = "digits", stop: str | None = None, overrides: dict[str, Any] | None = None
) -> Run:
    """Distil and leave the files of a run.

    Args:
        root: where the run directory is made.
        name: of the run.
        stop: the run is killed in the middle of this stage (one of `STAGES`).
        overrides: of the recipe.
    """
    recipe = parse_recipe(_recipe() | (overrides or {}))
    run = Run.create(root, name)
    write_text(run.recipe, dump_recipe(recipe))
    write_json(run.versions, _versions())
    splits = make_splits(recipe.data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks so small are slower with more
    try:
        _pass(_Lab(recipe, run, splits), stop)
    finally:
        torch.set_num_threads(threads)
    return run


def _pass(lab: _Lab, stop: str | None) -> None:
    for stage in STAGES:
        if stage == stop:
            if stage in {"control", "distill"}:
                lab.train(stage, epochs=min(3, lab.recipe.train.epochs - 1))
            return
        getattr(lab, f"do_{stage}")()


def _recipe() -> dict[str, Any]:
    return {
        "teacher": {"model": "perceptron_256@digits", "resolution": 64},
        "student": {"model": "perceptron_12@digits", "resolution": 32},
        "data": {"train": "digits", "val_fraction": 0.2, "test_fraction": 0.4},
        "view": {"crop_scale": [0.6, 1.0], "flip": 0.0, "rotation": 10},
        "loss": {"temperature": 2.0, "label_weight": 0.2},
        "train": {"epochs": 8, "lr": 1e-2},
    }


def _versions() -> dict[str, Any]:
    return {
        "tutelage": "0.1.0",
        "torch": torch.__version__,
        "timm": "1.0.31",
        "python": "3.11.9",
        "machine": {"cpu": "test CPU", "cores": 2, "memory_gb": 8.0, "gpu": None},
        "started": "2025-11-25T00:15:00+00:00",
        "command": "tutelage distill recipe.yaml",
    }


class _Lab:
    def __init__(self, recipe: Recipe, run: Run, splits: Splits) -> None:
        self.recipe, self.run, self.splits = recipe, run, splits
        self.temperature = recipe.loss.temperature
        self.x = {part: _pixels(getattr(splits, part)) for part in ("train", "val", "test")}
        self.y = {part: torch.from_numpy(getattr(splits, part).labels) for part in ("train", "val", "test")}
        classes = len(splits.classes)
        torch.manual_seed(recipe.train.seed)
        self.teacher = _fitted(
            _perceptron(256, classes), self.x["train"], self.y["train"], steps=120, lr=3e-3
        )
        self.start = _fitted(_perceptron(12, classes), self.x["train"], self.y["train"], steps=60, lr=1e-2)
        self.states: dict[str, dict[str, Tensor]] = {}
        self.control = self.student = self.start

    # --- stages

    def do_preflight(self) -> None:
        teacher, student = self._val(self.teacher), self._val(self.start)
        with torch.no_grad():
            soft = softmax(self.teacher(self.x["train"]) / self.temperature, 1)
        record = {
            "teacher": _who(self.recipe.teacher.model, 64, teacher) | {"precision": "fp32"},
            "student": _who(self.recipe.student.model, 32, student),
            "chance_top1": 100 / len(self.splits.classes),
            "advantage": teacher["top1"] - student["top1"],
            "target_entropy": float(-(soft * soft.log()).sum(1).mean()),
            "precision": {"chosen": "fp32", "images_per_s": {"student": {"fp32": 61000.0, "bf16": 42000.0}}},
            "checks": [
                {
                    "name": "teacher frozen",
                    "ok": True,
                    "detail": "no parameter of the teacher takes a gradient",
                },
                {
                    "name": "teacher above chance",
                    "ok": True,
                    "detail": f"teacher top-1 {teacher['top1']:.2f}",
                },
                {
                    "name": "teacher better than student",
                    "ok": teacher["top1"] > student["top1"],
                    "detail": "on val",
                },
            ],
            "resolutions": [
                {"who": "teacher", "resolution": 64, **teacher},
                {"who": "student", "resolution": 32, **student},
            ],
            "steps": 300,
            "estimated_seconds": 12.0,
            "disk_mb": 1.0,
        }
        write_json(self.run.preflight, record)

    def do_control(self) -> None:
        self.control = self.train("control")

    def do_distill(self) -> None:
        self.student = self.train("distill")

    def do_choose(self) -> None:
        start = self.start.state_dict()
        options = [self._candidate("start", "start", 0.0, start)]
        for name, state in self.states.items():
            options.append(self._candidate(name, name, 1.0, state))
            options += [
                self._candidate(
                    f"{name}@{a:g}", name, a, {k: torch.lerp(v, state[k], a) for k, v in start.items()}
                )
                for a in (0.25, 0.5, 0.75)
            ]
        best = max(options, key=lambda o: (o["val"]["top1"], -o["val"]["nll"]))
        best["kept"] = True
        self.student = _with_state(self.start, best["state"])
        records = [{k: v for k, v in option.items() if k != "state"} for option in options]
        write_json(self.run.candidates, {"metric": "top1", "kept": best["name"], "candidates": records})

    def do_measure(self) -> None:
        networks = {"teacher": self.teacher, "start": self.start, "control": self.control}
        networks |= {"distilled": self.student, "int8": _rounded(self.student)}
        predictions = {role: self._test_logits(network) for role, network in networks.items()}
        first = predictions["teacher"].argmax(1)
        rows = [self._row(role, network, predictions[role], first) for role, network in networks.items()]
        sure = {
            role: paired(
                predictions["distilled"].numpy(),
                predictions[role].numpy(),
                self.y["test"].numpy(),
                resamples=500,
            )
            for role in ("start", "control", "teacher")
        }
        start = sure["start"]
        result = outcome(start)
        sentence = (
            f"The kept student is {result} {'than' if result in {'better', 'worse'} else 'from'} its start by "
            f"{start.difference:+.2f} points top-1 (95% interval {start.low:+.2f} to {start.high:+.2f}), "
            f"on {start.n:,} test images."
        )
        pairs = [{"new": "distilled", "old": role, **asdict(pair)} for role, pair in sure.items()]
        record = {
            "rows": Table(rows).records(),
            "verdict": {"sentence": sentence, "outcome": result, "pairs": pairs},
            "test": self.splits.test.record() | {"n": len(self.splits.test)},
        }
        write_json(self.run.comparison, record)
        self._write_predictions(predictions)

    def do_diagnose(self) -> None:
        findings = [
            {
                "name": "still improving",
                "severity": "note",
                "sentence": "The last epoch was the best on val: more epochs would likely help.",
                "evidence": {"last_gain": 0.4},
                "try": [{"key": "train.epochs", "value": "16", "why": "twice the budget"}],
                "stage": "distill",
                "epoch": self.recipe.train.epochs,
            },
            {
                "name": "headroom",
                "severity": "good",
                "sentence": "The teacher is clearly better than the student on this data.",
                "evidence": {"advantage": self._val(self.teacher)["top1"] - self._val(self.start)["top1"]},
                "try": [],
                "stage": "distill",
                "epoch": None,
            },
            {
                "name": "fast first epoch",
                "severity": "problem",
                "sentence": "Val fell in the first epoch: the learning rate may be too high for a pretrained start.",
                "evidence": {"lr": self.recipe.train.lr},
                "try": [{"key": "train.lr", "value": "1e-3", "why": "a tenth"}],
                "stage": "distill",
                "epoch": 1,
            },
        ]
        write_json(self.run.diagnosis, {"findings": findings})

    # --- training

    def train(self, stage: str, epochs: int | None = None) -> nn.Module:
        """All epochs of a stage, or some of them; a row of metrics each."""
        network, average = deepcopy(self.start), deepcopy(self.start)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.recipe.train.lr)
        total = self.recipe.train.epochs
        order = np.random.default_rng(self.recipe.train.seed)
        best = -1.0
        for epoch in range(1, (epochs or total) + 1):
            began = time.perf_counter()
            lr = self.recipe.train.lr * (1 + np.cos(np.pi * (epoch - 1) / total)) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr
            sums: dict[str, float] = {}
            for indices in np.array_split(order.permutation(len(self.y["train"])), 12):
                x = self.x["train"][indices]
                parts = self._loss(stage, network, x + 0.1 * torch.randn_like(x), self.y["train"][indices])
                optimizer.zero_grad()
                sum(parts.values()).backward()
                optimizer.step()
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.data.lerp_(value.data, 0.05)
                sums = {k: sums.get(k, 0.0) + v.item() / 12 for k, v in parts.items()}
            row = self._epoch_row(stage, epoch, sums, network, average, lr, time.perf_counter() - began)
            append_jsonl(self.run.metrics, row)
            if stage == "distill" and row["val"]["top1"] > best:
                best = row["val"]["top1"]
                self.states["best"] = deepcopy(network.state_dict())
        if stage == "distill":
            self.states |= {"last": network.state_dict(), "ema": average.state_dict()}
        return network

    def _loss(self, stage: str, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        out = network(x)
        if stage == "control":
            return {"label": cross_entropy(out, y)}
        with torch.no_grad():
            taught = log_softmax(self.teacher(x) / self.temperature, 1)
        kd = kl_div(log_softmax(out / self.temperature, 1), taught, log_target=True, reduction="batchmean")
        return {
            "kd": self.temperature**2 * kd,
            "label": self.recipe.loss.label_weight * cross_entropy(out, y),
        }

    def _epoch_row(
        self,
        stage: str,
        epoch: int,
        sums: dict[str, float],
        network: nn.Module,
        average: nn.Module,
        lr: float,
        seconds: float,
    ) -> dict[str, Any]:
        with torch.no_grad():
            parts = self._loss(stage, network, self.x["val"], self.y["val"])
            train_top1 = 100 * (network(self.x["train"]).argmax(1) == self.y["train"]).float().mean().item()
        on_val = {k: v.item() for k, v in parts.items()}
        return {
            "stage": stage,
            "epoch": epoch,
            "epochs": self.recipe.train.epochs,
            "step": 12 * epoch,
            "loss": {"total": sum(sums.values()), **sums},
            "train_top1": train_top1,
            "val": self._val(network) | {"loss": sum(on_val.values()), **on_val},
            "ema_val": self._val(average),
            "lr": float(lr),
            "images_per_s": len(self.y["train"]) / seconds,
            "seconds": seconds,
            "bad_steps": 0,
        }

    # --- figures

    def _val(self, network: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            figures = quality(network(self.x["val"]), self.y["val"])
        return {"top1": figures.top1, "nll": figures.nll}

    def _test_logits(self, network: nn.Module) -> Tensor:
        with torch.no_grad():
            return network(self.x["test"])

    def _candidate(self, name: str, source: str, alpha: float, state: dict[str, Tensor]) -> dict[str, Any]:
        val = self._val(_with_state(self.start, state))
        return {"name": name, "source": source, "alpha": alpha, "val": val, "kept": False, "state": state}

    def _row(self, role: str, network: nn.Module, logits: Tensor, first: Tensor) -> Row:
        figures = quality(logits, self.y["test"])
        weights = sum(p.numel() for p in network.parameters())
        times = sorted(_seconds(network, self.x["test"][:1]) for _ in range(30))
        recipe = self.recipe.teacher if role == "teacher" else self.recipe.student
        absent = {} if role != "int8" else {"gmacs": "not counted for a deployed file"}
        against = paired(logits.argmax(1).numpy(), first.numpy(), self.y["test"].numpy(), resamples=500)
        return Row(
            model="model.int8.onnx" if role == "int8" else recipe.model,
            role=role,
            origin="made by the test",
            resolution=8,
            size_mb=weights * (1 if role == "int8" else 4) / 2**20,
            params_m=weights / 1e6,
            gmacs=None if absent else weights / 1e9,
            latency_ms=1e3 * times[15],
            latency_p10=1e3 * times[3],
            latency_p90=1e3 * times[27],
            images_per_s=1 / times[15],
            top1=figures.top1,
            top5=figures.top5,
            nll=figures.nll,
            ece=figures.ece,
            n=figures.n,
            paired=None if role == "teacher" else against,
            why=absent,
        )

    def _write_predictions(self, predictions: dict[str, Tensor]) -> None:
        arrays: dict[str, np.ndarray] = {
            "ids": np.array(self.splits.test.ids),
            "labels": self.splits.test.labels,
            "classes": np.array(self.splits.classes),
        }
        for role, logits in predictions.items():
            prob, top = softmax(logits, 1).topk(min(5, logits.shape[1]))
            arrays[f"{role}_top5"] = top.numpy().astype(np.int32)
            arrays[f"{role}_prob5"] = prob.numpy().astype(np.float32)
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)
        write_bytes(self.run.predictions, stream.getvalue())


def _who(model: str, resolution: int, val: dict[str, float]) -> dict[str, Any]:
    spec = InputSpec(resolution, resolution, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=1.0)
    return {
        "model": model,
        "origin": "made by the test",
        "resolution": resolution,
        "input": spec.to_dict(),
        "val": val,
    }


def _pixels(part: Subset) -> Tensor:
    images = [np.asarray(part.image(i).convert("L").resize((8, 8)), np.float32) for i in range(len(part))]
    return torch.from_numpy(np.stack(images).reshape(len(part), -1) / 127.5 - 1)


def _perceptron(*widths: int) -> nn.Sequential:
    *hidden, classes = widths
    layers: list[nn.Module] = []
    for a, b in pairwise([64, *hidden]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], classes))


def _fitted(network: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(network(x + 0.2 * torch.randn_like(x)), y).backward()
        optimizer.step()
    return network.eval()


def _with_state(like: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network = deepcopy(like)
    network.load_state_dict(state)
    return network


def _rounded(network: nn.Module) -> nn.Module:
    """Weights as 8-bit integers would hold them."""
    network = deepcopy(network)
    for p in network.parameters():
        scale = p.data.abs().max() / 127
        p.data = (p.data / scale).round() * scale
    return network


def _seconds(network: nn.Module, x: Tensor) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        network(x)
    return time.perf_counter() - began


def make_folder(root: Path, classes: Sequence[str], names: Sequence[str], per_class: int = 30) -> Path:
    """Digits as an image folder whose class and file names are given; names are numbered."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for index, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for count, pixels in enumerate(bunch.images[bunch.target == index][:per_class]):
            file = names[count % len(names)]
            Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / f"{count} {file}.png")
    return root


def random_start(run: Run, path: Path, against: str | None = None) -> Run:
    """Copy a run as one whose student started from random weights, 93 points below the student that it keeps.

    Args:
        run: a finished run.
        path: of the copy.
        against: the role that the verdict is about; None: as in older runs, about the start.
    """
    copy = Run(path)
    shutil.copytree(run.path, copy.path)
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    recipe["student"]["model"] = "perceptron_12@none"
    write_text(copy.recipe, yaml.safe_dump(recipe))
    comparison = read_json(run.comparison)
    verdict = comparison["verdict"]
    far = {"difference": 93.0, "low": 92.0, "high": 94.0, "mcnemar_p": 1e-9}
    near = {"difference": 1.5, "low": 0.5, "high": 2.5, "mcnemar_p": 0.001}
    below = {"difference": -3.0, "low": -4.0, "high": -2.0, "mcnemar_p": 1e-6}
    changes = {"start": far, "control": near, "teacher": below}
    for pair in verdict["pairs"]:
        pair |= changes[pair["old"]]
    verdict |= {"sentence": "The kept student is better than its start by 93 points.", "outcome": "better"}
    if against:
        verdict |= {
            "sentence": "The kept student is what the pipeline says.",
            "outcome": "not significantly different",
            "against": against,
        }
    write_json(copy.comparison, comparison)
    return copy
