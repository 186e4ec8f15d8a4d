"""A data set to try on: written whole as a folder of images, or not at all."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.test_torchvision import cache, fashion  # noqa: F401 - a fixture

from tutelage.cli import main
from tutelage.core.recipe import DataRecipe
from tutelage.data import fetch as module
from tutelage.data.sources.base import open_source
from tutelage.data.splits import make_splits


def command(*arguments: object) -> tuple[int, str]:
    """The exit code, and what is printed on both streams."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main(["data", *map(str, arguments)])
    return int(ended.value.code or 0), printed.getvalue()


def test_a_fetched_set_is_a_folder_with_the_splits_of_a_run(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    fashion(cache)
    there = make_splits(DataRecipe(train="torchvision:FashionMNIST"))
    code, output = command("--fetch", "FashionMNIST", "--into", tmp_path / "clothes")
    assert code == 0, output
    assert "FashionMNIST: about 31 MB" in output.splitlines()[0]
    assert "licence: MIT" in output.splitlines()[0]
    assert f"tutelage distill --data {tmp_path}/clothes" in output.replace("\n", "")
    splits = make_splits(DataRecipe(train=str(tmp_path / "clothes")))
    assert "T-shirt-top" in splits.classes  # a slash is no part of a folder's name
    for part in ("train", "val", "test"):
        ours, theirs = getattr(splits, part), getattr(there, part)
        assert len(ours) == len(theirs) > 0
        pixels = [
            sorted(
                (str(p.classes[label]).replace("/", "-"), np.asarray(p.image(at)).tobytes())
                for at, label in enumerate(p.labels)
            )
            for p in (ours, theirs)
        ]
        assert pixels[0] == pixels[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_files_are_copied_as_they_are(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    for number, name in enumerate(("Forest", "River")):
        place = cache / "eurosat" / "eurosat" / "2750" / name
        place.mkdir(parents=True)
        for shade in range(20):
            Image.new("RGB", (8, 8), (shade, number, 9)).save(place / f"{shade}.jpg")
    originals = {path.read_bytes() for path in cache.rglob("*.jpg")}
    assert command("--fetch", "EuroSAT", "--into", tmp_path / "euro")[0] == 0
    assert {path.read_bytes() for path in (tmp_path / "euro").rglob("*.jpg")} == originals
    assert len(open_source(str(tmp_path / "euro"), "test")) == 8


def test_nothing_is_there_where_it_could_not_be_completed(
    cache: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    code, output = command("--fetch", "Flowers102", "--into", tmp_path / "here/flowers")
    assert code == 2
    assert "it cannot be downloaded (the network is unreachable); go online" in output.replace("\n", " ")
    fashion(cache)

    def stop(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.fetch("FashionMNIST", tmp_path / "here/clothes", print, stop)
    assert not list((tmp_path / "here").glob("*clothes"))
    assert command("--fetch", "FashionMNIST", "--into", tmp_path / "here/clothes")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fetch", "Flowers"], "did you mean 'Flowers102'?"),
        (["--fetch", "torchvision:Flowers"], "did you mean 'Flowers102'?"),
        (
            ["--fetch", "hf:org/name"],
            "such as `tutelage distill --data hf:org/name`: what is not on this machine",
        ),
        (["--fetch", "EuroSAT", "--into", "."], "there is such a file or folder already"),
        (["photos", "--fetch", "EuroSAT"], "fetch a data set first"),
        (["--into", "x"], "name the images to look at"),
        (["photos", "--into", "x"], "it is the folder for --fetch NAME"),
    ],
)
def test_what_is_refused(arguments: list[str], expected: str) -> None:
    code, output = command(*arguments)
    assert code == 2
    assert expected in " ".join(output.split())
