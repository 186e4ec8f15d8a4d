"""300 mutated files: each is read, or refused in one line; none hangs, and none makes us write where we should not."""

from __future__ import annotations

import copy
import io
import os
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.conftest import TINY

from tutelage.core.errors import TutelageError
from tutelage.core.files import append_jsonl, entry, read_jsonl, write_json, write_text
from tutelage.core.recipe import load_recipe
from tutelage.core.records import write_stage_metrics
from tutelage.core.run_dir import Run, write_digests
from tutelage.data.decode import decode
from tutelage.data.imagecache import cached
from tutelage.data.sources.base import ImageSet
from tutelage.data.splits import make_splits, whole
from tutelage.distillation.checkpoint import load_checkpoint, save_checkpoint
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights
from tutelage.pipeline.run import begin
from tutelage.pipeline.verify import verify

SECONDS = 20  # after which a case counts as hanging
COUNTS = {"recipe": 100, "weights": 50, "checkpoint": 30, "image": 60, "metrics": 20, "json": 20, "cache": 20}
NASTY = [
    *(False, 0.5, 3, 64, "auto", "no", [0.5, 1.0], "digits", "test_resnet@none"),  # some of which are fine
    *(
        None,
        True,
        "",
        "..",
        "../x",
        "/etc/passwd",
        "\0",
        "x" * 10_000,
        "1e999",
        "é\u202e",
        [],
        {},
        [[]],
        {"a": {}},
    ),
    *(
        -1,
        0,
        1,
        2**63,
        10**400,
        -1e-300,
        1e308,
        float("nan"),
        float("inf"),
        "folder:..",
        "wds:{0..9999999999}.tar",
    ),
    *(
        "folder:/nowhere",
        "wds:/dev/zero",
        "digits#val",
        "test_efficientnet@/dev/null",
        "@",
        "a@b@c",
        "!!python/x",
    ),
]
TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"{",
    b"[" * 200,
    b'"',
    b"&a *a",
    b"!!python/object:os.system ",
    b"NaN",
    b"-",
    b"9" * 5000,
]


# --- mutations


def bytes_mutated(content: bytes, chance: random.Random) -> bytes:
    """One or two of: flipped bits, a cut, a slice doubled, removed or overwritten, a nasty token put in."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 2)):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice([1, 4, 16, 256]))
        kind = chance.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place:end]
        elif kind == 3:
            del data[place:end]
        elif kind == 4:
            data[place:end] = chance.randbytes(end - place)
        else:
            data[place:place] = chance.choice(TOKENS)
    return bytes(data)


def tree_mutated(tree: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """One or two values replaced, or keys added."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 2)):
        at: Any = tree
        while True:
            key = chance.choice([*at, "unknown"]) if isinstance(at, dict) else None
            if key is None or not isinstance(at.get(key), dict) or chance.random() < 0.2 or not at[key]:
                break
            at = at[key]
        at[key] = chance.choice(NASTY)
    return tree


# --- what is done with them


class Photos(ImageSet):
    """A few pictures that are not decoded yet, so that they are worth a copy."""

    def __init__(self) -> None:
        ids = [f"{i}.png" for i in range(8)]
        super().__init__("photos", "photos", ids, ["a", "b"], np.arange(8) % 2)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (16 + index, 20), (index, 0, 0))


class Bench:
    """A directory of files that are well, and how each kind is mutated and read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"
        self.run = Run.create(self.runs, "one")
        self.pristine: dict[Path, bytes] = {}
        network = load_model("test_efficientnet@none", num_classes=10)
        save_weights(network.module, self.run.student, network.metadata())
        torch.save(network.module.state_dict(), self.run.path / "student.pth")
        save_checkpoint(
            self.run.checkpoints / "distill.safetensors",
            {"model": {"a": torch.ones(3)}},
            {"counters": {"epoch": 1}},
        )
        write_text(self.run.recipe, yaml.safe_dump(TINY))
        for epoch in (1, 2, 3):
            append_jsonl(self.run.metrics, {"stage": "distill", "epoch": epoch, "loss": {"total": 1.0}})
        write_json(self.run.preflight, {"precision": {"chosen": "fp32"}, "teacher": {"precision": "fp32"}})
        cached(whole(Photos()), 16, self.run.cache, 100, workers=0)
        write_digests(self.run)

    def mutated(self, path: Path, chance: random.Random) -> Path:
        """The file, changed in its place; another one that is well is put back first."""
        for other, content in self.pristine.items():
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(content)
        self.pristine.setdefault(path, path.read_bytes())
        path.write_bytes(bytes_mutated(self.pristine[path], chance))
        return path

    def recipe(self, chance: random.Random) -> None:
        path = self.root / "recipe.yaml"
        if chance.random() < 0.5:
            path.write_text(yaml.safe_dump(tree_mutated(TINY, chance)))
        else:
            path.write_bytes(bytes_mutated(yaml.safe_dump(TINY).encode(), chance))
        recipe = load_recipe(path)
        if recipe.name is None:
            recipe = recipe.model_copy(update={"name": f"fuzz-{chance.getrandbits(64)}"})
        begin(recipe, self.runs, "fuzz")
        make_splits(recipe.data)

    def weights(self, chance: random.Random) -> None:
        path = self.mutated(chance.choice([self.run.student, self.run.path / "student.pth"]), chance)
        load_model(f"test_efficientnet@{path}")

    def checkpoint(self, chance: random.Random) -> None:
        load_checkpoint(self.mutated(self.run.checkpoints / "distill.safetensors", chance))

    def image(self, chance: random.Random) -> None:
        stream = io.BytesIO()
        noise = np.random.default_rng(chance.randrange(99)).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(stream, chance.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
        decode(bytes_mutated(stream.getvalue(), chance), "image")

    def metrics(self, chance: random.Random) -> None:
        self.mutated(self.run.metrics, chance)
        rows = list(read_jsonl(self.run.metrics))
        write_stage_metrics(self.run.metrics, "distill", rows[:1])

    def json(self, chance: random.Random) -> None:
        path = self.mutated(chance.choice([self.run.preflight, self.run.digests]), chance)
        if path == self.run.digests:
            list(verify(self.run).lines())
        else:
            entry(path, "precision", "chosen")

    def cache(self, chance: random.Random) -> None:
        files = sorted(path for path in self.run.cache.rglob("*") if path.is_file())
        self.mutated(chance.choice(files), chance)
        part = cached(whole(Photos()), 16, self.run.cache, 100, workers=0)
        part.digest()
        for position in range(len(part)):
            part.image(position)


# --- the watch


class Watch:
    """Notes every attempt to write outside a directory, to start a program or to reach the network."""

    def __init__(self, inside: Path) -> None:
        self.inside, self.on = str(inside), False
        self.seen: list[str] = []
        sys.addaudithook(self.look)  # stays till the interpreter ends, hence the switch

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.note(event, arguments[0])
        elif event in {"os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "shutil.rmtree"}:
            within_open_folder = isinstance(arguments[-1], int) and arguments[-1] >= 0
            if not within_open_folder:  # which shutil.rmtree has opened, and was looked at for
                self.note(event, arguments[0])
        elif event in {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}:
            self.seen.append(f"{event} {arguments[:2]}")

    def note(self, event: str, path: object) -> None:
        name = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if name and name != "/dev/null" and not name.startswith(self.inside):
            self.seen.append(f"{event} {name}")


@contextmanager
def alarm(what: str) -> Iterator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(case: Callable[[random.Random], None], seed: str) -> str:
    """`read` or `refused`; anything else than a `TutelageError` fails the test."""
    with alarm(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case(random.Random(seed))
        except TutelageError:
            return "refused"
    return "read"


def test_mutated_files_are_read_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench")
    watch = Watch(tmp_path / "bench")
    found: Counter[str] = Counter()
    watch.on = True
    try:
        for kind, count in COUNTS.items():
            for number in range(count):
                found[f"{kind} {tried(getattr(bench, kind), f'{kind}-{number}')}"] += 1
    finally:
        watch.on = False
    assert watch.seen == []
    assert list(elsewhere.iterdir()) == []
    assert found.total() == 300
    with capsys.disabled():
        print(
            f"\nfuzz: {found.total()} mutated files: "
            + ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
        )
