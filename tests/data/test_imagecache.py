"""Decoded copies: the same images, found again, never half there, never larger than allowed."""

from __future__ import annotations

import json
import logging
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import ViewRecipe
from tutelage.data import imagecache
from tutelage.data.decode import UnreadableImage
from tutelage.data.imagecache import cache_side, cached
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import BadImages, eval_loader, train_loader
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import ViewPolicy

SPEC = InputSpec(16, 16)


@pytest.fixture
def photos(tmp_path) -> Subset:
    """150 JPEGs of three sizes; the 8th is none."""
    rng = np.random.default_rng(0)
    for number in range(150):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = [(20, 30), (90, 40), (24, 24)][number % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    images = open_source(f"folder:{tmp_path}/photos")
    (tmp_path / "photos" / images.ids[7]).write_bytes(b"no image")
    images = open_source(f"folder:{tmp_path}/photos")
    return Subset(images, np.setdiff1d(np.arange(150), [3, 99]), images.classes or ())


def copies(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []


def test_a_copy_has_the_names_of_its_images(photos, tmp_path):
    """Stored answers are found by them; a part of a folder has the names of the folder's files."""
    (tmp_path / "photos").rename(tmp_path / "train")
    images = open_source(f"folder:{tmp_path}#train")
    photos = Subset(images, photos.indices, images.classes or ())
    copy = cached(photos, 64, tmp_path / "cache", 100)
    assert copy is not photos
    positions = range(len(photos))
    assert [copy.full_name(k) for k in positions] == [photos.full_name(k) for k in positions]


@pytest.mark.parametrize("workers", [0, 2])
def test_small_images_are_kept_bit_for_bit(photos, tmp_path, workers):
    copy = cached(photos, 64, tmp_path / "cache", 100, workers=workers)
    assert type(copy.images).__name__ == "CachedImages"
    for position in range(len(photos)):
        if position != 6:
            assert copy.image(position).tobytes() == photos.image(position).tobytes()
    with pytest.raises(UnreadableImage, match=r"a/014\.jpg: cannot be decoded \(not an image"):
        copy.image(6)
    assert copy.ids == photos.ids
    assert copy.labels.tolist() == photos.labels.tolist()
    assert copy.digest() == photos.digest()


def test_large_images_are_shrunk_by_their_short_side_and_have_another_digest(photos, tmp_path):
    copy = cached(photos, 22, tmp_path / "cache", 100)
    sizes = {copy.image(p).size for p in range(len(photos)) if p != 6}
    assert sizes == {(20, 30), (50, 22), (22, 22)}
    expected = photos.image(0).size
    assert min(expected) <= 22 or copy.image(0).size != expected
    assert copy.digest() != photos.digest()


def test_loaders_see_no_difference(photos, tmp_path):
    copy = cached(photos, 64, tmp_path / "cache", 100)
    options = {"batch_size": 20, "seed": 0, "epoch": 0, "workers": 1}
    for plain, fast in zip(
        train_loader(photos, ViewPolicy(ViewRecipe()), [SPEC], **options, bad=BadImages(1)),
        train_loader(copy, ViewPolicy(ViewRecipe()), [SPEC], **options, bad=BadImages(1)),
        strict=True,
    ):
        assert plain["index"].tolist() == fast["index"].tolist()
        assert np.array_equal(plain["images"][0], fast["images"][0])


def test_a_copy_is_made_once(photos, tmp_path, monkeypatch):
    cached(photos, 64, tmp_path / "cache", 100)
    monkeypatch.setattr(imagecache, "_fill", lambda *_: pytest.fail("filled again"))
    again = cached(photos, 64, tmp_path / "cache", 100)
    assert cached(again, 64, tmp_path / "cache", 100) is again
    assert pickle.loads(pickle.dumps(again)).image(0).tobytes() == photos.image(0).tobytes()


def test_other_images_are_another_copy(photos, tmp_path):
    cached(photos, 64, tmp_path / "cache", 100)
    cached(photos, 22, tmp_path / "cache", 100)
    cached(Subset(photos.images, photos.indices[:50], photos.classes), 64, tmp_path / "cache", 100)
    assert len(copies(tmp_path / "cache")) == 3
    path = tmp_path / "photos" / photos.id(0)
    shade = Image.new("RGB", (20, 30), "red")
    shade.save(path)
    path.write_bytes(path.read_bytes().ljust(10_000, b"\0"))
    changed = Subset(open_source(f"folder:{tmp_path}/photos"), photos.indices, photos.classes)
    assert cached(changed, 64, tmp_path / "cache", 100).image(0).tobytes() == shade_as_stored(path)
    assert len(copies(tmp_path / "cache")) == 4


def shade_as_stored(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_too_large_is_announced_and_left(photos, tmp_path, caplog):
    assert cached(photos, 64, tmp_path / "cache", 0.1) is photos
    assert "data.cache_mb is 0.1" in caplog.text
    assert copies(tmp_path / "cache") == []


def test_the_size_is_announced_before(photos, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "tutelage"):
        cached(photos, 64, tmp_path / "cache", 100)
    assert "148 images, about 1 MB" in caplog.text


def test_an_estimate_that_was_too_small_stops_the_fill(photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(imagecache, "_fits", lambda *_: True)
    assert cached(photos, 64, tmp_path / "cache", 0.1) is photos
    assert "it became larger than data.cache_mb=0.1" in caplog.text
    assert copies(tmp_path / "cache") == []


def test_a_place_that_cannot_be_written_costs_the_cache_only(photos, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert cached(photos, 64, tmp_path / "file", 100) is photos
    assert "no image cache is kept" in caplog.text


def test_a_fill_that_was_killed_leaves_nothing_to_be_read(photos, tmp_path, monkeypatch):
    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(photos, 64, tmp_path / "cache", 100, progress=killed)
    assert copies(tmp_path / "cache") == []
    abandoned = tmp_path / "cache" / f".{imagecache._key(photos, 64)}.1.tmp"
    abandoned.mkdir()
    (abandoned / "pixels.bin").write_bytes(b"half")
    monkeypatch.setattr(imagecache, "ABANDONED", -1)
    cached(photos, 64, tmp_path / "cache", 100)
    assert [path.name for path in copies(tmp_path / "cache")] == [imagecache._key(photos, 64)]


@pytest.mark.parametrize("damage", ["cut", "index", "header", "gone"])
def test_a_damaged_copy_is_made_again(photos, tmp_path, damage, caplog):
    (place,) = copies(cached_at(photos, tmp_path))
    if damage == "cut":
        (place / "pixels.bin").write_bytes((place / "pixels.bin").read_bytes()[:-1])
    elif damage == "index":
        content = bytearray((place / "index.bin").read_bytes())
        content[40] ^= 1
        (place / "index.bin").write_bytes(content)
    elif damage == "header":
        (place / "header.json").write_text("{")
    else:
        (place / "pixels.bin").unlink()
    copy = cached(photos, 64, tmp_path / "cache", 100)
    assert "damaged; it is made again" in caplog.text
    assert copy.image(5).tobytes() == photos.image(5).tobytes()


def test_a_hundred_mutated_copies_are_made_again_or_named(tmp_path):
    """One byte of one file changed: the same images, or one line."""
    rng = random.Random(0)
    digits = open_source("digits")
    for number in range(12):
        path = tmp_path / "d" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.image(number).save(path)
    part = whole(open_source(f"folder:{tmp_path}/d"))
    originals = [part.image(position).tobytes() for position in range(12)]
    cached(part, 64, tmp_path / "cache", 100)
    (place,) = copies(tmp_path / "cache")
    named = 0
    for _ in range(100):
        file = rng.choice([place / name for name in (imagecache.PIXELS, imagecache.INDEX, imagecache.HEADER)])
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        copy = cached(part, 64, tmp_path / "cache", 100)
        try:
            assert [copy.image(position).tobytes() for position in range(12)] == originals
        except TutelageError as error:
            named += "delete this folder" in str(error)
            shutil.rmtree(place)
            cached(part, 64, tmp_path / "cache", 100)
    assert 10 < named < 60  # those in the pixels, about a third


def cached_at(photos: Subset, tmp_path: Path) -> Path:
    cached(photos, 64, tmp_path / "cache", 100)
    return tmp_path / "cache"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_is_found_when_read_and_named(photos, tmp_path, workers):
    (place,) = copies(cached_at(photos, tmp_path))
    content = bytearray((place / "pixels.bin").read_bytes())
    content[20] ^= 1
    (place / "pixels.bin").write_bytes(content)
    copy = cached(photos, 64, tmp_path / "cache", 100)
    with pytest.raises(TutelageError, match=r"damaged at a/000\.jpg; delete this folder") as caught:
        list(eval_loader(copy, [SPEC], 16, workers, bad=BadImages(5)))
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_progress_counts_to_the_end(photos, tmp_path):
    seen: list[tuple[int, int]] = []
    cached(photos, 64, tmp_path / "cache", 100, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 148), (128, 148), (148, 148)]


def test_the_header_counts_what_was_shrunk(photos, tmp_path):
    cached(photos, 22, tmp_path / "cache", 100)
    (place,) = copies(tmp_path / "cache")
    header = json.loads((place / "header.json").read_text())
    assert header["shrunk"] == sum(min(photos.image(p).size) > 22 for p in range(len(photos)) if p != 6)
    assert list(header["bad"]) == ["6"]


def test_the_digits_need_no_copy(tmp_path):
    part = whole(open_source("digits"))
    assert cached(part, 64, tmp_path / "cache", 100) is part


def test_the_side_serves_every_model():
    small, large = InputSpec(96, 96, crop_pct=0.875), InputSpec(128, 128, crop_pct=1.0)
    assert cache_side([small], ViewRecipe(crop_scale=(1, 1))) == 110
    assert cache_side([small, large], ViewRecipe(crop_scale=(1, 1))) == 128
    assert cache_side([large], ViewRecipe(crop_scale=(0.28, 1))) == 160
