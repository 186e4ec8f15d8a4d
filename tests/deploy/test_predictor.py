"""The predictor: the same answers as PyTorch on any picture, no torch, one line for what is wrong."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tests.deploy.conftest import Exported
from timm.data import create_transform

import tutelage
from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import open_source
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.pictures import find_images
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.runtimes.base import Runtime
from tutelage.models.source import Model


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with an edge: resizing it wrongly shows."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 10, 30), (width // 3, height // 4, width // 2, height // 2))
    return image


def rotated(path: Path) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    photo(71, 45).save(path, exif=exif)
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def see_through(path: Path) -> Image.Image:
    image = photo(50, 61)
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    image.save(path)
    white = np.full((61, 50, 3), 255.0)
    share = np.asarray(alpha, float)[..., None] / 255
    mixed = np.asarray(image.convert("RGB"), float) * share + white * (1 - share)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def saved(image: Image.Image, path: Path) -> Image.Image:
    """What a reader that knows nothing of this project makes of the file."""
    image.save(path)
    return Image.open(path).convert("RGB")


PICTURES: dict[str, tuple[str, Callable[[Path], Image.Image]]] = {
    "odd": ("odd.png", lambda p: saved(photo(37, 91), p)),
    "wide": ("wide.jpg", lambda p: saved(photo(301, 33), p)),
    "tiny": ("tiny.png", lambda p: saved(photo(3, 2), p)),
    "grey": ("grey.jpg", lambda p: saved(photo(53, 40).convert("L"), p)),
    "palette": ("palette.gif", lambda p: saved(photo(53, 40).convert("P"), p)),
    "cmyk": ("cmyk.jpg", lambda p: saved(photo(64, 48).convert("CMYK"), p)),
    "rgba": ("rgba.png", see_through),
    "exif": ("exif.jpg", rotated),
}


def pytorch(model: Model, image: Image.Image) -> np.ndarray:
    spec = model.input_spec
    transform = create_transform(
        (3, spec.height, spec.width), is_training=False, interpolation=spec.interpolation, mean=spec.mean,
        std=spec.std, crop_pct=spec.crop_pct, crop_mode=spec.crop_mode,
    )  # fmt: skip
    with torch.inference_mode():
        return model.module(transform(image)[None])[0].numpy()  # type: ignore[operator]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", PICTURES)
def test_it_says_what_pytorch_says(exported: Exported, tmp_path: Path, kind: str, runtime: str) -> None:
    name, make = PICTURES[kind]
    upright = make(tmp_path / name)
    predictor = Predictor(exported.path, runtime=runtime, precision="fp32")  # type: ignore[arg-type]
    truth = pytorch(exported.model, upright)
    assert np.abs(predictor.logits(tmp_path / name) - truth).max() < 1e-2
    (found,) = predictor(tmp_path / name, top=3)
    probabilities = torch.from_numpy(truth).softmax(0).numpy()
    assert [guess.index for guess in found.guesses] == list(np.argsort(-probabilities)[:3])
    assert [guess.probability for guess in found.guesses] == pytest.approx(
        sorted(probabilities)[:-4:-1], abs=1e-2
    )


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_every_crop_is_pytorchs(exported: Exported, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "deploy"
    shutil.copytree(exported.path, out)
    spec = replace(exported.model.input_spec, crop_mode=mode, crop_pct=0.8, interpolation="bilinear")
    replace(Manifest.read(out), input_spec=spec).write(out)
    image = photo(57, 90)
    image.save(tmp_path / "image.png")
    truth = pytorch(replace(exported.model, input_spec=spec), image)
    assert np.abs(Predictor(out, precision="fp32").logits(tmp_path / "image.png") - truth).max() < 1e-2


def test_files_folders_arrays_and_pictures_are_one(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "photos/inner").mkdir(parents=True)
    image = photo(40, 40)
    image.save(tmp_path / "photos/inner/b.png")
    image.save(tmp_path / "photos/a.PNG")
    (tmp_path / "photos/notes.txt").write_text("not an image")
    predictor = tutelage.Predictor(exported.path)
    found = predictor([tmp_path / "photos", np.asarray(image), np.stack([np.asarray(image)] * 2), image])
    assert len(found) == 6
    assert [Path(one.source).name for one in found] == ["a.PNG", "b.png", "array", "array", "array", "image"]
    assert len({(one.label, round(one.probability, 6)) for one in found}) == 1
    assert sum(guess.probability for guess in predictor(image, top=99)[0].guesses) == pytest.approx(1)
    assert len(predictor(image, top=99)[0].guesses) == 10


def test_a_picture_of_the_callers_is_left_as_it_is(exported: Exported, tmp_path: Path) -> None:
    rotated(tmp_path / "exif.jpg")
    image = Image.open(tmp_path / "exif.jpg")
    before = image.size
    predictor = Predictor(exported.path)
    assert predictor(image)[0].guesses == predictor(tmp_path / "exif.jpg")[0].guesses
    assert image.size == before


def test_int8_is_chosen_first_and_what_is_installed(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Predictor(exported.path).file.name == "model-int8.xml"
    assert Predictor(exported.path, precision="fp32").file.name == "model.xml"
    monkeypatch.setattr(Runtime, "is_installed", property(lambda self: self.name == "onnxruntime"))
    assert Predictor(exported.path).file.name == "model.onnx"
    assert Predictor(exported.path, precision="int8").file.name == "model-int8.onnx"
    monkeypatch.setattr(Runtime, "is_installed", property(lambda self: False))
    with pytest.raises(
        TutelageError, match=r"openvino is not installed; run `pip install tutelage\[deploy\]`"
    ):
        Predictor(exported.path)


def test_it_needs_no_torch(exported: Exported, tmp_path: Path) -> None:
    photo(40, 40).save(tmp_path / "a.png")
    script = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "from tutelage.cli import main; import tutelage.deploy.predictor, tutelage\n"
        f"main(['predict', {str(exported.path)!r}, {str(tmp_path)!r}, '--json', '--top', '2'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["source"].endswith("a.png")
    assert len(found["guesses"]) == 2
    assert set(found["guesses"][0]) == {"label", "class_id", "index", "probability"}


# --- threads

CALLS, THREADS = 2000, 8


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_each_thread_gets_its_own_answer(exported: Exported, runtime: Any, precision: Any) -> None:
    predictor = Predictor(exported.path, runtime=runtime, precision=precision)
    arrays = [np.asarray(photo(40, 40, seed)) for seed in range(40)]
    alone = [predictor.logits(array) for array in arrays]
    apart = min(np.abs(one - two).max() for i, one in enumerate(alone) for two in alone[:i])
    assert apart > 1e-3  # so that another picture's answer would show
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda i: predictor.logits(arrays[i % 40]), range(CALLS)))
    wrong = [i for i, logits in enumerate(found) if np.abs(logits - alone[i % 40]).max() > 1e-4]
    assert (len(found), wrong) == (CALLS, [])


def test_threads_may_share_one_opened_picture(exported: Exported, tmp_path: Path) -> None:
    predictor = Predictor(exported.path)
    photo(400, 300).save(tmp_path / "a.jpg")
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(20):
            image = Image.open(tmp_path / "a.jpg")  # not decoded yet
            found = list(pool.map(lambda _: predictor.logits(image), range(THREADS)))  # noqa: B023
            assert all(np.array_equal(found[0], logits) for logits in found)


# --- what can be wrong


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stdout, lines of stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out.splitlines(), err.splitlines()


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    photo(40, 40).save(tmp_path / "good.png")
    return Path(shutil.copytree(exported.path, tmp_path / "deploy"))


def test_bad_images_are_named_and_the_others_done(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "no images").mkdir()
    files = [
        tmp_path / name for name in ("cut.png", "text.jpg", "gone.jpg", "no images", "good.png", "empty.jpg")
    ]
    code, out, err = run(capsys, copy, *files, "--top", "1")
    assert code == 2
    assert [line.partition(":")[0] for line in out] == [str(tmp_path / "good.png")]
    assert [line.split(": ")[1] for line in err] == [str(file) for file in files if file.name != "good.png"]
    assert all(line.startswith("error: ") for line in err)
    assert sum("cannot be decoded" in line for line in err) == 3


@pytest.mark.parametrize("name", ["model-int8.xml", "model-int8.bin", "model.onnx", "model-int8.onnx"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_model_file(
    copy: Path, tmp_path: Path, name: str, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(keep * len(content))])
    if name.endswith(".onnx"):
        for other in copy.glob("model*"):
            if other.name != name:
                other.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(copy), str(tmp_path / "good.png")])
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: {copy / name.replace('.bin', '.xml')}: damaged model file (")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "labels.txt").unlink(), "labels.txt: missing; a deployed directory needs it"),
        (lambda d: (d / "labels.txt").write_text("a\nb\n"), "labels.txt: has 2 lines, the model has 10 classes"),
        (lambda d: (d / "labels.txt").write_bytes(b"\xff\xfe"), "labels.txt: cannot be read"),
        (lambda d: (d / "preprocess.json").unlink(), "preprocess.json: missing"),
        (lambda d: (d / "preprocess.json").write_text("{"), "preprocess.json: damaged"),
        (lambda d: (d / "preprocess.json").write_text("[]"), "preprocess.json: of another version"),
        (lambda d: (d / "preprocess.json").write_text('{"format": 1}'), "preprocess.json: damaged (KeyError"),
        (lambda d: (d / "model-int8.bin").unlink(), "model-int8.bin: missing; it belongs to model-int8.xml"),
        (lambda d: [f.unlink() for f in d.glob("model*")], "has no model file"),
        (lambda d: shutil.rmtree(d), "no such directory; use one that `tutelage export` wrote"),
    ],
)  # fmt: skip
def test_a_spoilt_directory(
    copy: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy)
    code, out, err = run(capsys, copy, tmp_path / "good.png")
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("error: ")
    assert words in err[0]


def test_probabilities_are_those_at_the_files_temperature(copy: Path) -> None:
    picture = photo(37, 91)
    logits = Predictor(copy).logits(picture)
    replace(Manifest.read(copy), temperature=2.5).write(copy)
    predictor = Predictor(copy)
    assert np.array_equal(predictor.logits(picture), logits)
    (found,) = predictor(picture, top=10)
    wanted = torch.from_numpy(logits / 2.5).softmax(0).numpy()
    for guess in found.guesses:
        assert guess.probability == pytest.approx(wanted[guess.index], abs=1e-6)


@pytest.mark.parametrize("temperature", [0, -1, "hot", float("inf"), None])
def test_a_temperature_that_is_none_is_named(copy: Path, temperature: object) -> None:
    path = copy / "preprocess.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": temperature}))
    with pytest.raises(TutelageError, match=r"preprocess.json: damaged .*; export again"):
        Predictor(copy)


def test_a_file_without_a_temperature_is_read(copy: Path) -> None:
    path = copy / "preprocess.json"
    content = json.loads(path.read_text())
    del content["temperature"]
    path.write_text(json.dumps(content))
    assert Predictor(copy).manifest.temperature == 1


def test_labels_of_another_model(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.read(copy)
    replace(manifest, labels=manifest.labels[:9], class_ids=manifest.class_ids[:9]).write(copy)
    code, _, err = run(capsys, copy, tmp_path / "good.png")
    assert code == 2
    assert "gives 10 logits, but labels.txt has 9 lines" in err[0]


def test_paths_that_lead_nowhere(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(capsys, copy, tmp_path / "no.png")[2] == [f"error: {tmp_path}/no.png: no such image or folder"]
    assert run(capsys, copy, tmp_path / "empty")[2][0].startswith(f"error: {tmp_path}/empty: no images found")
    assert list(find_images([tmp_path / "good.png"])) == [tmp_path / "good.png"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(exported: Exported, array: np.ndarray) -> None:
    with pytest.raises(TutelageError, match="give uint8 pixels"):
        Predictor(exported.path)(array)


# --- values that are no pictures, and pictures that are broken

NO_PICTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "NoneType: not a picture"),
    "number": (lambda: 7, "int: not a picture"),
    "flag": (lambda: True, "bool: not a picture"),
    "mapping": (lambda: {"image": "a.png"}, "dict: not a picture"),
    "class": (lambda: Path, "type: not a picture"),
    "bytes": (lambda: b"\x89PNG", "bytes of 4: not a picture; open a file's content with PIL.Image.open"),
    "bytearray": (lambda: bytearray(b"\x89PNG"), "bytearray of 4: not a picture"),
    "memory": (lambda: memoryview(b"\x89PNG"), "memoryview of 4: not a picture"),
    "stream": (lambda: io.BytesIO(b"\x89PNG"), "BytesIO: not a picture; open the file with PIL.Image.open"),
    "file": (lambda: open(os.devnull, "rb"), "BufferedReader: not a picture"),  # noqa: SIM115
    "tensor": (lambda: torch.zeros(3, 8, 8), "Tensor: not a picture; convert a tensor with .permute"),
    "batch": (lambda: torch.zeros(2, 3, 8, 8), "Tensor: not a picture"),
    "parameter": (lambda: torch.nn.Parameter(torch.zeros(3, 8, 8)), "Parameter: not a picture"),
    "empty path": (lambda: "", "'': an empty path"),
    "address": (lambda: "https://example.org/cat.jpg", "cat.jpg: no such image or folder"),
    "objects": (lambda: np.array(["a.png"], object), "array of object (1,): give uint8 pixels"),
    "film": (
        lambda: np.zeros((2, 2, 8, 8, 3), np.uint8),
        "array of uint8 (2, 2, 8, 8, 3): give uint8 pixels",
    ),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a list"])
@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_one_clear_line(exported: Exported, kind: str, inside: bool) -> None:
    make, line = NO_PICTURES[kind]
    given = [make()] if inside else make()
    with pytest.raises(TutelageError) as raised:
        Predictor(exported.path)(given)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_broken_pictures_are_left_out_and_named(exported: Exported, tmp_path: Path) -> None:
    photo(40, 40).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    broken = [tmp_path / "cut.png", tmp_path / "gone.png", None, np.zeros(4, np.uint8), tmp_path / "empty"]
    closed = Image.open(tmp_path / "good.png")
    closed.close()
    given = [tmp_path / "good.png", *broken, closed, photo(40, 40)]
    predictor = Predictor(exported.path)
    with pytest.warns(UserWarning, match="left out: ") as warned:
        found = predictor(given, errors="skip")
    assert [Path(one.source).name for one in found] == ["good.png", "image"]
    assert len(warned) == 6
    assert "cut.png" in str(warned[0].message)
    with pytest.raises(TutelageError, match=r"cut\.png: cannot be decoded"):
        predictor(given)
    with pytest.raises(TutelageError, match="errors='ignore': write 'raise' or 'skip'"):
        predictor(given, errors="ignore")  # type: ignore[arg-type]


def test_folders_are_searched_as_in_training(exported: Exported, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    (place / "inner").mkdir(parents=True)
    for name in ("a.png", "inner/b.JPG"):
        photo(40, 40).save(place / name)
    (place / "inner/back").symlink_to(place)
    (place / "linked.png").symlink_to(place / "a.png")
    for name in ("._a.png", ".hidden.jpg", ".DS_Store", "Thumbs.db"):
        (place / name).write_bytes(b"\0\5\x16\7")
    for name in ("__MACOSX", ".cache"):
        (place / name).mkdir()
        (place / name / "._b.png").write_bytes(b"\0\5\x16\7")
        photo(40, 40).save(place / name / "thumbnail.png")
    trained = sorted(
        Path(name).relative_to("photos").as_posix() for name in open_source(f"folder:{tmp_path}").ids
    )
    assert trained == [path.relative_to(place).as_posix() for path in find_images([place])]
    (place / "inner/named.png").mkdir()
    photo(40, 40).save(place / "inner/named.png/c.png")
    found = [path.relative_to(place).as_posix() for path in find_images([place])]
    assert found == ["a.png", "inner/b.JPG", "inner/named.png/c.png", "linked.png"]
    assert len(Predictor(exported.path)(place)) == 4


def test_a_run_stands_for_its_deployed_files(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(40, 40).save(tmp_path / "a.png")
    run_path, seeds = tmp_path / "run", tmp_path / "seeds"
    for place in (run_path, seeds):
        place.mkdir()
        (place / "recipe.yaml").touch()
    assert run(capsys, run_path, tmp_path / "a.png")[2] == [
        f"error: {run_path}: a run without deployed files; run `tutelage export {run_path}`"
    ]
    shutil.copytree(exported.path, run_path / "deploy")
    shutil.copytree(exported.path, seeds / "seed-1" / "deploy")
    assert Predictor(run_path)(tmp_path / "a.png") == Predictor(exported.path)(tmp_path / "a.png")
    assert (
        f"name one of its seeds, such as {seeds / 'seed-1'}" in run(capsys, seeds, tmp_path / "a.png")[2][0]
    )


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_printed_in_any_encoding(
    copy: Path, tmp_path: Path, encoding: str, options: list[str]
) -> None:
    manifest = Manifest.read(copy)
    replace(manifest, labels=("Bär", "猫", *manifest.labels[2:])).write(copy)
    image = tmp_path / "Grüße 猫.png"
    photo(40, 40).save(image)
    undecodable = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(image, undecodable)
    ended = subprocess.run(
        [sys.executable, "-m", "tutelage.cli", "predict", str(copy), str(image), undecodable, *options],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    lines = ended.stdout.decode(encoding).splitlines()
    assert len(lines) == 2
    if options:
        assert json.loads(lines[0])["source"] == str(image)
