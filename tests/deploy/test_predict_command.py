"""`tutelage predict`: which file runs, batches, formats of the results, and a file that is whole or not there."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.deploy.conftest import Exported

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.deploy import predictor as predictor_module
from tutelage.deploy.predictor import BATCH, Prediction, Predictor


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, lines of stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err.splitlines()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven digits, of which 04.png cannot be read."""
    from sklearn.datasets import load_digits

    place = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(load_digits().images[:11]):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(place / f"{number:02}.png")
    (place / "04.png").write_bytes(b"not an image")
    return place


class Seen:
    """The sessions that predictors opened: the file, and the number of images of each call."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.calls: list[int] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, real = Seen(), predictor_module.open_session

    def opened(path: Path, **options: Any) -> Any:
        session = real(path, **options)
        found.files.append(path.name)

        def call(images: np.ndarray) -> np.ndarray:
            found.calls.append(len(images))
            return session(images)

        call.num_classes = session.num_classes  # type: ignore[attr-defined]
        return call

    monkeypatch.setattr(predictor_module, "open_session", opened)
    return found


# --- batches


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [("openvino", "int8"), ("openvino", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")],
)
def test_batches_give_the_classes_of_single_images_in_their_order(
    exported: Exported, photos: Path, seen: Seen, runtime: str, precision: Any
) -> None:
    single = list(Predictor(exported.path, runtime=runtime, precision=precision).answers(photos))
    assert seen.calls == [1] * 10
    for size, calls in ((4, [4] + [1] * 6), (3, [3, 1, 1, 3, 1, 1]), (20, [1] * 10)):
        seen.calls.clear()
        many = Predictor(exported.path, runtime=runtime, precision=precision, batch=size)
        answers = list(many.answers(photos))
        assert seen.calls == calls
        for one, other in zip(single, answers, strict=True):
            if isinstance(one, TutelageError):
                assert str(one) == str(other)
                continue
            assert isinstance(other, Prediction)
            assert (one.source, [g.index for g in one.guesses]) == (
                other.source,
                [g.index for g in other.guesses],
            )
            assert [g.probability for g in one.guesses] == pytest.approx(
                [g.probability for g in other.guesses], abs=1e-4
            )
    assert [Path(p.source).name for p in single if isinstance(p, Prediction)] == [
        f"{number:02}.png" for number in range(11) if number != 4
    ]


def test_the_best_batch_is_that_of_the_file(exported: Exported) -> None:
    assert Predictor(exported.path).batch == 1
    assert Predictor(exported.path, batch=None).batch == BATCH > 1
    assert Predictor(exported.path, precision="fp32", batch=None).batch == 1
    with pytest.raises(TutelageError, match="batch=0: give at least 1 picture"):
        Predictor(exported.path, batch=0)


def test_pictures_before_a_broken_one_are_given_in_batches_too(exported: Exported, photos: Path) -> None:
    stream = Predictor(exported.path, batch=8).stream(photos)
    assert [Path(next(stream).source).name for _ in range(4)] == ["00.png", "01.png", "02.png", "03.png"]
    with pytest.raises(TutelageError, match=r"04\.png: cannot be decoded"):
        next(stream)


# --- the command


def test_the_runtime_and_the_precision_choose_the_file(
    exported: Exported, photos: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, file in (
        ([], "model-int8.xml"),
        (["--runtime", "onnxruntime"], "model.onnx"),
        (["--runtime", "onnxruntime", "--precision", "int8"], "model-int8.onnx"),
        (["--precision", "fp32"], "model.xml"),
    ):
        seen.files.clear()
        code, out, _ = run(capsys, exported.path, photos / "00.png", *options)
        assert (code, out.count("\n"), seen.files) == (0, 1, [file])
    seen.calls.clear()
    run(capsys, exported.path, photos, "--batch", "2", "--runtime", "onnxruntime")
    assert seen.calls == [2, 2, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "tflight"], "runtime tflight: choose from onnxruntime, openvino"),
        (["--precision", "int2"], "precision int2: choose from int8, int4, fp32, fp16"),
        (["--json", "--csv"], "--json and --csv: the results have one format"),
        (["--out", "{here}/00.png/out.csv"], "out.csv: cannot be written"),
    ],
)
def test_what_cannot_work_is_one_line(
    exported: Exported, photos: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(here=photos) for word in options]
    code, out, err = run(capsys, exported.path, photos, *given)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]


def test_csv_has_a_line_for_each_class(
    exported: Exported, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [exported.path, photos, "--top", "3", "--batch", "1"]
    code, out, err = run(capsys, *words, "--csv")
    assert code == 2
    assert ["04.png" in line for line in err] == [True]
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["image", "rank", "label", "class_id", "index", "probability", "deferred"]
    assert len(rows) == 30
    _, lines, _ = run(capsys, *words, "--json")
    flat = [
        {"image": found["source"], "rank": str(rank), "deferred": "0"}
        | {key: str(guess[key]) for key in ("label", "class_id", "index", "probability")}
        for found in map(json.loads, lines.splitlines())
        for rank, guess in enumerate(found["guesses"], start=1)
    ]
    assert rows == flat


@pytest.mark.parametrize("options", [[], ["--json"], ["--csv"]])
def test_a_file_gets_what_the_terminal_would(
    exported: Exported, photos: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = run(capsys, exported.path, photos, *options)
    out = tmp_path / "new" / "results.txt"
    assert run(capsys, exported.path, photos, *options, "--out", out)[:2] == (code, "")
    assert out.read_text() == shown
    assert [file.name for file in out.parent.iterdir()] == ["results.txt"]


def test_an_interrupted_command_leaves_the_file_as_it_was(
    exported: Exported, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Predictor.answers

    def interrupted(self: Predictor, *arguments: Any) -> Iterator[Prediction | TutelageError]:
        for number, found in enumerate(real(self, *arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Predictor, "answers", interrupted)
    for before in (None, "earlier results"):
        if before:
            (tmp_path / "out.csv").write_text(before)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(["predict", str(exported.path), str(photos), "--out", str(tmp_path / "out.csv")])
        assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_bar_is_shown_on_the_terminal_while_the_results_go_to_a_pipe(
    exported: Exported, photos: Path
) -> None:
    terminal, its_end = os.openpty()
    shown = bytearray()

    def drain() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(terminal, 4096):
                shown.extend(piece)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    done = subprocess.run(
        [sys.executable, "-m", "tutelage.cli", "predict", str(exported.path), str(photos), "--csv"],
        stdout=subprocess.PIPE,
        stderr=its_end,
        timeout=300,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(its_end)
    reader.join(10)
    os.close(terminal)
    assert b"11/11" in shown
    # a terminal of 80 columns breaks the line within the path, which is longer or shorter
    assert b"04.png:cannotbedecoded" in b"".join(bytes(shown).split())
    assert len(list(csv.DictReader(io.StringIO(done.stdout.decode())))) == 50
