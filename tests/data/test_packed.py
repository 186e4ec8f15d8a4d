"""The packed store: nearly the same images, written once by any number of processes, going on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import ViewRecipe
from tutelage.data import claims, packing, parts
from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import BadImages, eval_loader, train_loader
from tutelage.data.packed import estimated_mb, opened, read_store, shrunk_jpeg, store_place
from tutelage.data.packing import fill
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset
from tutelage.data.views import ViewPolicy

SIDE = 32
SIZES = [(20, 30), (90, 40), (400, 300)]  # width and height of the pictures, in turn


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subset:
    """45 JPEGs of three sizes and a PNG; the 8th file is no image. Parts have ten images, so that there are five."""
    monkeypatch.setattr(packing, "LEAST", 10)
    monkeypatch.setattr(packing, "CHUNK", 4)
    monkeypatch.setattr(packing, "PAUSE", 0.01)
    for number in range(45):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(SIZES[number % 3], number).save(path, quality=95)
    picture((64, 64), 45).save(tmp_path / "photos" / "a" / "900.png")
    images = open_source(f"folder:{tmp_path}/photos")
    (tmp_path / "photos" / images.ids[7]).write_bytes(b"no image")
    images = open_source(f"folder:{tmp_path}/photos")
    return Subset(images, np.setdiff1d(np.arange(46), [3, 40]), images.classes or ())


def stored(photos: Subset, directory: Path, **options: int) -> tuple[Subset, Path]:
    place = store_place(photos.images, SIDE, directory)
    fill(photos, SIDE, place, 100, **options)
    copy = opened(photos, SIDE, place)
    assert copy is not None
    return copy, place


def written(place: Path) -> dict[str, int]:
    """When each part was last written."""
    return {path.name: path.stat().st_mtime_ns for path in place.glob("*.part")}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_nearly_those_of_the_files(photos: Subset, tmp_path: Path, workers: int) -> None:
    copy, place = stored(photos, tmp_path / "cache", workers=workers)
    assert len(written(place)) == 5
    assert {path.suffix for path in place.iterdir()} == {".part"}
    assert copy.ids == photos.ids
    assert copy.labels.tolist() == photos.labels.tolist()
    assert [copy.full_name(k) for k in range(44)] == [photos.full_name(k) for k in range(44)]
    for position in range(44):
        if position == 6:
            continue
        original, small = photos.image(position), copy.image(position)
        assert min(small.size) == min(SIDE, *original.size)
        if min(original.size) <= SIDE:
            assert small.tobytes() == original.tobytes()  # the file's own JPEG
        else:
            expected = original.resize(small.size, Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(small, float) - np.asarray(expected, float)).mean() < 3
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        copy.image(6)


def test_a_store_has_another_digest_than_its_files(photos: Subset, tmp_path: Path) -> None:
    """So that targets of one are not taken for those of the other."""
    assert stored(photos, tmp_path / "cache")[0].digest() != photos.digest()


def test_loaders_read_a_store_as_they_read_files(photos: Subset, tmp_path: Path) -> None:
    copy, _ = stored(photos, tmp_path / "cache")
    options = {"batch_size": 8, "seed": 0, "epoch": 0, "workers": 1}
    for plain, fast in zip(
        train_loader(photos, ViewPolicy(ViewRecipe()), [InputSpec(24, 24)], **options, bad=BadImages(1)),
        train_loader(copy, ViewPolicy(ViewRecipe()), [InputSpec(24, 24)], **options, bad=BadImages(1)),
        strict=True,
    ):
        assert plain["index"].tolist() == fast["index"].tolist()
        apart = plain["images"][0].float() - fast["images"][0].float()
        assert 0 < apart.abs().mean() < 3
    assert pickle.loads(pickle.dumps(copy)).image(0).tobytes() == copy.image(0).tobytes()


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(photos: Subset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(parts, "shrunk_size", lambda size, side: sizes.append(size) or size)
    large = photos.images.ids.index("a/002.jpg")
    assert photos.images.image(large).size == (400, 300)
    shrunk_jpeg(photos.images, large, SIDE)
    assert sizes == [(50, 38)]  # an eighth


def test_a_stopped_fill_goes_on_where_it_stopped(photos: Subset, tmp_path: Path) -> None:
    place = store_place(photos.images, SIDE, tmp_path)

    def killed(done: int, count: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(photos, SIDE, place, 100, progress=killed)
    before = written(place)
    assert len(before) == 2
    assert opened(photos, SIDE, place) is None
    seen: list[tuple[int, int]] = []
    fill(photos, SIDE, place, 100, progress=lambda *done: seen.append(done))
    assert {name: written(place)[name] for name in before} == before
    assert len(written(place)) == 5
    assert seen[0] == (24, 44)  # 20 were there
    assert seen[-1] == (44, 44)
    assert seen == sorted(seen)


def test_another_subset_adds_what_is_missing(photos: Subset, tmp_path: Path) -> None:
    few = replace(photos, indices=photos.indices[:12])
    _, place = stored(few, tmp_path)
    before = written(place)
    copy, again = stored(photos, tmp_path)
    assert again == place
    assert {name: written(place)[name] for name in before} == before
    assert len(np.unique(read_store(place, SIDE).entries["image"])) == 44
    sizes = sum(int(part.stat().st_size) for part in place.iterdir())
    whole, other = stored(photos, tmp_path / "other")
    assert (
        abs(sizes - sum(int(part.stat().st_size) for part in other.iterdir())) < 200
    )  # nothing is there twice
    assert whole.image(30).tobytes() == copy.image(30).tobytes()


def _fill_as(rank: int, photos: Subset, place: Path) -> None:
    fill(photos, SIDE, place, 100, workers=0, rank=rank, world_size=2)


def test_two_processes_fill_one_store(photos: Subset, tmp_path: Path) -> None:
    """Each writes parts of its own, and both return when all are there."""
    place = store_place(photos.images, SIDE, tmp_path)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_fill_as, args=(rank, photos, place)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert len(written(place)) == 5
    assert opened(photos, SIDE, place) is not None


def test_a_part_that_another_process_writes_is_waited_for_and_taken_if_it_dies(
    photos: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store_place(photos.images, SIDE, tmp_path)
    place.mkdir(parents=True)
    name = packing._name(photos.indices[:10])
    claim = place / f".{name}.claim"
    claim.write_text("elsewhere 1")  # a process of another machine
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:  # it has written nothing for a long time
            old = time.time() - 2 * claims.ABANDONED
            os.utime(claim, (old, old))

    monkeypatch.setattr(packing.time, "sleep", pause)
    fill(photos, SIDE, place, 100, workers=0)
    assert len(pauses) == 3
    assert len(written(place)) == 5


def test_a_claim_of_a_killed_process_costs_no_wait(
    photos: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store_place(photos.images, SIDE, tmp_path)
    place.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    (place / f".{packing._name(photos.indices[:10])}.claim").write_text(
        f"{claims.socket.gethostname()} {process.pid}"
    )
    monkeypatch.setattr(packing.time, "sleep", lambda seconds: pytest.fail("waited"))
    fill(photos, SIDE, place, 100, workers=0)
    assert opened(photos, SIDE, place) is not None


def test_what_a_killed_process_left_is_removed(photos: Subset, tmp_path: Path) -> None:
    place = store_place(photos.images, SIDE, tmp_path)
    place.mkdir(parents=True)
    left = [place / ".x.part.host.1.tmp", place / ".y.part.host.2.tmp"]
    for file in left:
        file.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    fill(photos, SIDE, place, 100, workers=0)
    assert [file.exists() for file in left] == [False, True]  # the other may be written just now


@pytest.mark.parametrize("damage", ["cut", "list", "empty", "gone"])
def test_a_damaged_part_is_written_again(
    photos: Subset, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy, place = stored(photos, tmp_path)
    file = sorted(place.iterdir())[2]
    content = bytearray(file.read_bytes())
    if damage == "list":
        content[-40] ^= 1
    file.write_bytes({"cut": content[5:], "list": content, "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    assert opened(photos, SIDE, place) is None
    assert ("packed again" in caplog.text) == (damage != "gone")
    again, _ = stored(photos, tmp_path)
    assert [again.image(k).tobytes() for k in (0, 20, 43)] == [copy.image(k).tobytes() for k in (0, 20, 43)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_is_found_when_read_and_named(photos: Subset, tmp_path: Path, workers: int) -> None:
    copy, place = stored(photos, tmp_path)
    for file in place.iterdir():
        content = bytearray(file.read_bytes())
        content[20] ^= 1
        file.write_bytes(content)
    with pytest.raises(TutelageError, match=r"\.part: damaged at .*; delete this file and resume") as caught:
        list(eval_loader(copy, [InputSpec(24, 24)], 8, workers, bad=BadImages(5)))
    assert "\n" not in str(caught.value)


def test_more_parts_than_files_may_be_open(
    photos: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_OPEN", 2)
    copy, _ = stored(photos, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for position in (0, 10, 20, 30, 0, 43, 10):
        copy.image(position)
    assert len(os.listdir("/proc/self/fd")) == before + 2


def test_a_changed_file_is_another_store(photos: Subset, tmp_path: Path) -> None:
    place = store_place(photos.images, SIDE, tmp_path)
    assert store_place(photos.images, SIDE + 1, tmp_path) != place
    os.utime(tmp_path / "photos" / photos.id(0), (1, 1))
    assert store_place(photos.images, SIDE, tmp_path) != place


def test_a_store_stays_below_its_limit(photos: Subset, tmp_path: Path) -> None:
    place = store_place(photos.images, SIDE, tmp_path)
    with pytest.raises(TutelageError, match="it became larger than 0 MB"):
        fill(photos, SIDE, place, 0.02)
    assert sum(file.stat().st_size for file in place.iterdir()) < 20_000
    fill(photos, SIDE, place, 1)
    size = sum(file.stat().st_size for file in place.iterdir())
    assert estimated_mb(photos, SIDE) * 1e6 == pytest.approx(size, rel=0.05)
