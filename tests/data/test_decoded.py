"""Which copies a run has: decoded pixels where they fit, else a packed store, else none; a resume has the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.killing import ONE_THREAD
from tests.pipeline.test_processes import free_port

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.decoded import Decided, decode_once
from tutelage.data.imagecache import CachedImages
from tutelage.data.input_spec import InputSpec
from tutelage.data.packed import PackedImages
from tutelage.data.splits import Splits, make_splits
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.prepare import prepare

SPEC = InputSpec(32, 32)
PACKED = 0.15  # MB (10^6 bytes) in which the JPEGs of the 60 pictures fit, but not their pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 smooth pictures of 120 x 90 pixels in two classes; 48 are for training, 12 for val and test together."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(60):
        noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC).save(path)
    return str(root)


def decided(
    photos: str, place: Path, before: Decided | None = None, **data: object
) -> tuple[Splits, Decided]:
    recipe = parse_recipe({"data": {"train": photos, **data}})
    splits = make_splits(recipe.data)
    return decode_once(splits, [SPEC], recipe, place, Silent(), Runtime.start("cpu"), before)


def test_pixels_are_kept_where_they_fit(photos: str, tmp_path: Path) -> None:
    splits, found = decided(photos, tmp_path)
    assert isinstance(splits.train.images, CachedImages)
    assert found.raw == {"train": 39, "val": 39, "unlabelled": None, "teacher": None}
    assert set(found.packed.values()) == {None}


def test_a_packed_store_is_filled_where_pixels_do_not_fit(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, found = decided(photos, tmp_path, cache_mb=PACKED)
    assert isinstance(splits.train.images, PackedImages)
    assert found.packed["train"] == 39
    assert found.raw["train"] is None
    assert splits.train.image(0).size == (52, 39)
    assert splits.test.image(0).size == (120, 90)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < PACKED * 1e6


@pytest.mark.parametrize(("cache", "kind"), [("raw", CachedImages), ("packed", PackedImages)])
def test_the_recipe_may_name_one(photos: str, tmp_path: Path, cache: str, kind: type) -> None:
    splits, _ = decided(photos, tmp_path, cache=cache)
    assert isinstance(splits.train.images, kind)
    assert isinstance(splits.val.images, kind)


def test_where_neither_fits_both_reasons_are_given(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, found = decided(photos, tmp_path, cache_mb=0.005)
    assert splits.train.image(0).size == (120, 90)
    assert found.record() == {"decoded": dict.fromkeys(found.raw), "packed": dict.fromkeys(found.raw)}
    assert "no image cache: 36 images would take" in caplog.text
    assert "no packed store: 36 images would take" in caplog.text
    assert "data.cache_mb is 0.005" in caplog.text
    assert list(tmp_path.rglob("*")) == []


def test_raw_alone_falls_back_on_the_files(photos: str, tmp_path: Path) -> None:
    splits, _ = decided(photos, tmp_path, cache="raw", cache_mb=PACKED)
    assert splits.train.image(0).size == (120, 90)


def test_a_resumed_run_has_what_it_had(photos: str, tmp_path: Path) -> None:
    """Although decoded pixels would fit now; and a run of an older version has no packed store."""
    splits, found = decided(photos, tmp_path, cache_mb=PACKED)
    again, same = decided(photos, tmp_path, found)
    assert same == found
    assert again.train.images.digest() == splits.train.images.digest()
    older = Decided.of({"decoded": dict.fromkeys(found.raw)})
    assert decided(photos, tmp_path, older)[0].train.image(0).size == (120, 90)
    shutil.rmtree(next(tmp_path.glob("packed-*")))
    with pytest.raises(TutelageError, match="the run began with decoded images"):
        decided(photos, tmp_path, found, cache_mb=0.001)


def test_a_run_records_and_resumes_its_store(tiny: dict, photos: str, tmp_path: Path) -> None:
    tiny["data"] = {"train": photos, "workers": 0, "cache": "packed"}
    recipe = parse_recipe(tiny | {"name": "run"})
    found = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    record = read_json(found.run.splits)
    assert record["packed"]["train"] == record["packed"]["val"] >= 32
    assert record["decoded"]["train"] is None
    again = prepare(recipe, found.run, Silent())
    assert again.splits.train.image(0).tobytes() == found.splits.train.image(0).tobytes()
    write_json(found.run.splits, {key: value for key, value in record.items() if key != "packed"})
    older = prepare(recipe, found.run, Silent())  # as a run that began before there were packed stores
    assert older.splits.train.image(0).size == (120, 90)


def test_two_processes_fill_the_store_of_a_run(photos: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "tests.helpers.packed_in_two"]
    ended = subprocess.run(
        [*command, photos, str(tmp_path), str(PACKED)],
        env=os.environ | ONE_THREAD | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [read_json(tmp_path / f"{rank}.json") for rank in range(2)]
    assert [row["processes"] for row in rows] == [2, 2]
    assert rows[0]["packed"] == rows[1]["packed"]
    assert rows[0]["packed"]["train"] == 39
    assert [row["size"] for row in rows] == [[52, 39]] * 2
    wrote = [name for row in rows for name in row["wrote"]]
    assert sorted(wrote) == sorted(path.name for path in tmp_path.rglob("*.part"))
