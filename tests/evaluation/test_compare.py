"""`tutelage compare` as a user runs it, and what its rows are made of."""

import csv
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.evaluation.compare import compare
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights

SMALL, OTHER = "test_efficientnet", "test_resnet"
SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/imagenet-sample.tar.gz"
WORDNET = ("n01440764", "n01443537", "n02084071")  # two of ImageNet-1k's classes, and one that it has not


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def photos(root: Path, classes: tuple[str, ...], each: int = 3) -> Path:
    """A folder of noise, a subfolder a class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def checkpoint(path: Path, name: str, classes: int, seed: int = 0) -> str:
    """A file of weights, and its NAME@WEIGHTS."""
    torch.manual_seed(seed)
    save_file(timm.create_model(name, num_classes=classes).state_dict(), path)
    return f"{name}@{path}"


def test_without_data_it_prints_costs_and_says_why_quality_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [tmp_path / f"out.{kind}" for kind in ("json", "csv", "md")]
    code, out, _ = run(
        capsys, "compare", f"{OTHER}@none", checkpoint(tmp_path / "a.safetensors", SMALL, 10),
        "--json", str(files[0]), "--csv", str(files[1]), "--markdown", str(files[2]), "--batch-size", "2",
    )  # fmt: skip
    assert code == 0
    first, second = json.loads(files[0].read_text())
    assert f"{second['change']['size_mb']:.2f}x" in out
    assert first["top1"] is None
    assert first["why"]["top1"] == "the weights are random (@none)"
    assert "--data" in second["why"]["ece"]
    assert "random" in out
    assert second["latency_ms"] > 0
    assert second["images_per_s"] > 0
    assert [row["model"] for row in csv.DictReader(files[1].open())] == [first["model"], second["model"]]
    assert "| size, MiB |" in files[2].read_text()


def test_wordnet_folders_are_weighed_over_the_heads_and_the_datas_classes(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "a.safetensors", SMALL, 1000)
    other = checkpoint(tmp_path / "b.safetensors", OTHER, 1000, seed=1)
    folder = photos(tmp_path / "photos", WORDNET[:2])
    first, second = compare([model, other], data=f"folder:{folder}", batch_size=1).rows
    assert (first.n, second.n) == (6, 6)
    assert first.top1 is not None
    assert first.top1_data is not None
    assert first.top1_data >= first.top1
    assert first.top5_data is None  # of two classes, of which any model has 100%
    assert second.paired is not None
    assert second.paired.difference == pytest.approx((second.top1 or 0) - first.top1)
    assert not first.why


def test_a_saved_head_is_matched_by_name_not_by_place(tmp_path: Path) -> None:
    base = load_model(f"{SMALL}@none")
    forth, back = base.with_head(["ant", "bee"]), base.with_head(["bee", "ant"])
    torch.nn.init.normal_(forth.module.get_classifier().weight)  # a new head is zero
    turned = {
        k: v.flip(0) if k.startswith("classifier.") else v for k, v in forth.module.state_dict().items()
    }
    back.module.load_state_dict(turned)
    specs = []
    for name, model in (("forth", forth), ("back", back)):
        save_weights(model.module, tmp_path / f"{name}.safetensors", model.metadata())
        specs.append(f"{SMALL}@{tmp_path / name}.safetensors")
    data = f"folder:{photos(tmp_path / 'photos', ('ant', 'bee'))}"
    first, second = compare(specs, data=data, batch_size=1).rows
    assert (first.top1, first.nll) == (second.top1, pytest.approx(second.nll))
    assert second.paired is not None
    assert second.paired.agreement == 100
    assert first.top1_data is None  # the head's classes are the data's


def test_heads_that_do_not_speak_of_the_data_say_so(tmp_path: Path) -> None:
    tiny = load_model(f"{SMALL}@none", num_classes=10).at(32)
    save_weights(tiny.module, tmp_path / "c.safetensors", tiny.metadata())
    specs = [
        checkpoint(tmp_path / "a.safetensors", SMALL, 1000),
        checkpoint(tmp_path / "b.safetensors", SMALL, 7),
        f"{SMALL}@{tmp_path / 'c.safetensors'}",
        f"{SMALL}@none",
    ]
    table = compare(specs, data="digits", batch_size=1)
    imagenet, seven, ten, random = table.rows
    assert "1000 classes are not those of digits (such as '0')" in imagenet.why["top1"]
    assert seven.why["top1"] == "the head has 7 unnamed classes, digits has 10"
    assert ten.top1 is not None
    assert any("does not name its classes" in note for note in table.notes)
    assert random.why["top1"] == "the weights are random (@none)"


def test_one_foreign_folder_is_named(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "a.safetensors", SMALL, 1000)
    folder = photos(tmp_path / "photos", WORDNET, each=1)
    (row,) = compare([model], data=f"folder:{folder}", batch_size=1).rows
    assert "such as 'n02084071'" in row.why["top1"]


def test_an_image_that_cannot_be_decoded_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", WORDNET[:2])
    (folder / WORDNET[0] / "0.png").write_bytes(b"no image")
    model = checkpoint(tmp_path / "a.safetensors", SMALL, 1000)
    table = compare([model, model], data=f"folder:{folder}", batch_size=1)
    assert [row.n for row in table.rows] == [5, 5]
    assert any("1 of its 6 images" in note for note in table.notes)


def test_the_same_model_twice_is_no_different(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "a.safetensors", SMALL, 1000)
    data = f"folder:{photos(tmp_path / 'photos', WORDNET[:2])}"
    first, second = compare([model, model], data=data, batch_size=1).rows
    assert second.paired is not None
    assert (second.paired.difference, second.paired.agreement) == (0, 100)
    assert first.size_mb == second.size_mb


@pytest.mark.slow
def test_the_published_accuracy_on_real_photographs(tmp_path: Path) -> None:
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not there")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path, filter="data")
    models = ["tf_efficientnet_lite2", "tf_efficientnet_lite0"]
    lite2, lite0 = compare(models, data=f"folder:{tmp_path / 'imagenet-sample'}", batch_size=1).rows
    assert (lite2.top1, lite0.top1) == (pytest.approx(88.6, abs=0.4), pytest.approx(88.2, abs=0.4))
    assert (lite2.top1_data, lite0.top1_data) == (pytest.approx(92.0, abs=0.4), pytest.approx(91.4, abs=0.4))
    assert (lite2.resolution, lite0.resolution) == (260, 224)


# --- bad input: one line and exit code 2


def bad_files(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints that cannot be used."""
    good = tmp_path / "good.safetensors"
    save_file(timm.create_model(OTHER).state_dict(), good)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:100_000])
    code = tmp_path / "code.pth"
    torch.save(torch.nn.Linear(1, 1), code)
    return {"unfitting": good, "cut": cut, "code": code, "missing": tmp_path / "missing.pth"}


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ("unfitting", "does not fit the model ("),
        ("cut", "cut.safetensors: truncated or not a safetensors file"),
        ("code", "code.pth: holds more than tensors (torch.nn.modules.linear.Linear)"),
        ("missing", "missing.pth: no such checkpoint file"),
    ],
)
def test_a_bad_checkpoint(
    weights: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "compare", f"{SMALL}@{bad_files(tmp_path)[weights]}")
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert line in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["test_efficientnett@none"],
            "error: unknown model 'test_efficientnett'; did you mean 'test_efficientnet'?",
        ),
        (["efficientvit_b1.r223_in1k"], "did you mean 'efficientvit_b1.r22"),
        ([f"{SMALL}@"], "write a file, or none, after the @"),
        ([f"{SMALL}@none", "--data", "folder:no/such"], "no/such"),
        ([f"{SMALL}@none", "--data", "folders:x"], "did you mean 'folder'?"),
        ([f"{SMALL}@none", "--device", "tpu"], "error: --device tpu: use one of cpu, cuda, mps"),
        ([f"{SMALL}@none", "--json", "/proc/no/out.json"], "/proc/no/out.json: cannot be written"),
    ],
)
def test_bad_arguments(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert line in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [[], [f"{SMALL}@none", "--batch-size", "0"], [f"{SMALL}@none", "--nope"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "compare", *arguments)[0] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device() -> None:
    with pytest.raises(TutelageError, match="--device cuda: no such device was found"):
        compare([f"{SMALL}@none"], device="cuda")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and the file is not in the cache"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_an_unreachable_hub_is_said_at_once(environment: dict[str, str], reason: str, tmp_path: Path) -> None:
    begin = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "tutelage", "compare", "test_vit"],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2
    assert last.startswith("error: test_vit: the hub's timm/test_vit.r160_in1k cannot be reached (")
    assert reason in last
    assert last.endswith("use test_vit@none for random weights or test_vit@FILE for a checkpoint")
    assert time.perf_counter() - begin < 40  # the client alone retries for 46 s
