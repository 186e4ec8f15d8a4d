"""What was found below a folder of very many images is kept for the next start, and not used after a change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tutelage.data.sources import folder, scan
from tutelage.data.sources.base import ImageSet, open_source

LONG_AGO = time.time() - 3600


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 files in two classes and a folder without labels, of which 12 are "very many"."""
    monkeypatch.setattr(scan, "LEAST", 12)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    for number in range(24):
        path = root / ("a", "b", "_unlabelled")[number % 3] / f"{number:02} é.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (100 + number))
    (root / "a" / os.fsdecode(b"odd \xe9.jpg")).write_bytes(b"odd")
    (root / "a" / "notes.psd").write_bytes(b"no image")
    settle(root)
    return root


def settle(root: Path) -> None:
    """As if nothing had been changed for an hour."""
    for place in (root, *root.iterdir()):
        os.utime(place, (LONG_AGO, LONG_AGO))


def known(images: ImageSet) -> tuple[object, ...]:
    assert images.labels is not None
    sizes = images.sizes()
    assert sizes is not None
    places = [images.place(index) for index in range(len(images))]
    names = [images.full_name(index) for index in range(len(images))]
    content = [images.content(index) for index in range(len(images))]
    found = (list(images.ids), images.classes, images.labels.tolist(), sizes.tolist(), images.notes)
    return (*found, images.stamp(), images.digest(), images.origin, places, names, content)


def test_the_next_start_lists_nothing_and_finds_the_same(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(scan, "LEAST", 100)
        plain = known(open_source(str(photos)))
    first = known(open_source(str(photos)))
    monkeypatch.setattr(folder, "_found", lambda *_: pytest.fail("listed again"))
    assert known(open_source(str(photos))) == first == plain
    assert "1 .psd passed over" in str(plain[4])


def test_few_images_are_not_kept(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "LEAST", 26)
    open_source(str(photos))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "a new class", "in place"])
def test_a_change_is_seen(photos: Path, change: str) -> None:
    before = open_source(str(photos))
    first = photos / before.ids[0]
    if change == "added":
        (photos / "b" / "new.jpg").write_bytes(b"new")
    elif change == "removed":
        first.unlink()
    elif change == "renamed":
        first.rename(first.with_name("new.jpg"))
    elif change == "a new class":
        (photos / "c").mkdir()
        (photos / "c" / "new.jpg").write_bytes(b"new")
    else:
        first.write_bytes(b"other")  # by the sample, which has nearly all of so few files
    after = open_source(str(photos))
    assert after.digest() != before.digest()
    assert after.stamp() != before.stamp()


def test_a_folder_that_has_just_been_changed_is_not_kept(photos: Path, tmp_path: Path) -> None:
    """Within the same tick of the clock, a later change would give it the same time."""
    (photos / "a" / "new.jpg").write_bytes(b"new")
    open_source(str(photos))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"no zip at all"])
def test_a_damaged_scan_is_made_again(photos: Path, tmp_path: Path, content: bytes) -> None:
    first = known(open_source(str(photos)))
    (file,) = (tmp_path / "cache").rglob("*.npz")
    whole = file.read_bytes()
    for damaged in (content, whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert known(open_source(str(photos))) == first
    assert file.read_bytes()[:2] == b"PK"


def test_a_cache_that_cannot_be_written_costs_only_the_next_start(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(str(photos))) == 25


def test_parts_of_one_folder_have_scans_of_their_own(photos: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    photos.rename(parts / "train")
    for number in range(14):
        path = parts / "val" / "ab"[number % 2] / f"v{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"val")
    settle(parts / "train")
    settle(parts / "val")
    for _ in range(2):
        train, val = open_source(str(parts), "train"), open_source(str(parts), "val")
        assert (len(train), len(val)) == (25, 14)
        assert np.sum(train.labels == -1) == 8
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2
