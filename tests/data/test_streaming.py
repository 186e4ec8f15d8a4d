"""Shards that lie elsewhere: read once, a shard at a time, and equal to shards on this disk."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from PIL import Image
from tests.helpers.refusals import source_refusal as refusal
from tests.helpers.shard_server import Server, digit, serving, write_shards

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.decode import UnreadableImage
from tutelage.data.decoded import decode_once
from tutelage.data.input_spec import InputSpec
from tutelage.data.packed import PackedImages, opened, store_place
from tutelage.data.packing import fill
from tutelage.data.sources import remote, streaming
from tutelage.data.sources.base import ImageSet, open_source
from tutelage.data.splits import make_splits, whole

pytest.importorskip("aiohttp", reason="the extra wds is not installed")
SHARDS, EACH = 4, 5
SAMPLE = 2560  # bytes of an image and its class in a shard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(streaming, "PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", SHARDS, EACH)
    return tmp_path / "shards"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


def pattern(place: str) -> str:
    return f"wds:{place}/{{0..{SHARDS - 1}}}.tar"


def parts(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.part"))


def assert_same(images: ImageSet, others: ImageSet) -> None:
    assert list(images.ids) == list(others.ids)
    assert images.classes == others.classes
    assert images.labels is not None
    assert others.labels is not None
    assert images.labels.tolist() == others.labels.tolist()
    for index in range(len(others)):
        assert images.content(index) == others.content(index)
        assert images.image(index).tobytes() == others.image(index).tobytes()


@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_shards_of_a_url_are_those_of_this_disk(folder: Path, scheme: str) -> None:
    """JPEGs that are no larger than the side stay byte for byte what they are."""
    local = open_source(pattern(str(folder)))
    assert len(local) == SHARDS * EACH
    if scheme == "memory":
        for shard in folder.iterdir():
            fsspec.filesystem("memory").pipe(f"/{folder.name}/{shard.name}", shard.read_bytes())
    with serving(folder) as server:
        urls = {"http": server.url, "file": folder.as_uri(), "memory": f"memory://{folder.name}"}
        images = open_source(pattern(urls[scheme]))
    assert_same(images, local)
    assert images.sizes().tolist() == local.sizes().tolist()  # type: ignore[union-attr]
    assert images.digest() != local.digest()
    assert len({images.place(index) for index in range(len(images))}) == len(images)


def test_the_second_start_needs_no_network(server: Server, cache: Path) -> None:
    images = open_source(pattern(server.url))
    assert server.asked == {f"/{shard}.tar": 1 for shard in range(SHARDS)}
    url = server.url
    server.shutdown()
    server.server_close()
    assert_same(open_source(pattern(url)), images)
    assert len(open_source(f"wds:{url}/{{0..1}}.tar")) == 2 * EACH  # shards are kept one by one
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".part"] * SHARDS


def test_a_side_gives_the_images_of_a_packed_store(folder: Path, tmp_path: Path) -> None:
    local = open_source(pattern(str(folder)))
    fill(whole(local), 16, place := store_place(local, 16, tmp_path / "store"), 100, workers=0)
    store = opened(whole(local), 16, place)
    assert store is not None
    images = open_source(pattern(folder.as_uri()) + "?side=16")
    assert images.image(0).size == (16, 16)
    assert_same(images, store.images)


def _open(spec: str) -> None:
    open_source(spec)


def test_a_killed_pass_goes_on_with_what_is_missing(server: Server, cache: Path, folder: Path) -> None:
    """The processes that it has started end too; shards that were read are not asked for again."""
    held = f"/{SHARDS - 1}.tar"
    server.held.add(held)
    process = multiprocessing.get_context("fork").Process(target=_open, args=(pattern(server.url),))
    process.start()
    until = time.monotonic() + 60
    while len(parts(cache)) < SHARDS - 1 and time.monotonic() < until:
        time.sleep(0.02)
    before = {part: part.stat().st_mtime_ns for part in parts(cache)}
    assert len(before) == SHARDS - 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.held.clear()
    images = open_source(pattern(server.url))
    assert_same(images, open_source(pattern(str(folder))))
    assert {part: part.stat().st_mtime_ns for part in parts(cache) if part in before} == before
    assert server.asked == {**{f"/{shard}.tar": 1 for shard in range(SHARDS - 1)}, held: 2}


def test_processes_divide_the_shards(server: Server, cache: Path, folder: Path) -> None:
    """Those of a torchrun, and those that each of these starts: no shard is asked for twice."""

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        assert_same(open_source(pattern(server.url)), open_source(pattern(str(folder))))

    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert server.asked == {f"/{shard}.tar": 1 for shard in range(SHARDS)}


@pytest.mark.parametrize("failures", [[503], [0, 0]])
def test_a_server_that_fails_for_a_moment_is_asked_again(
    server: Server, failures: list[int], folder: Path
) -> None:
    server.failing["/1.tar"] = failures
    asked = len(failures) + 1
    images = open_source(pattern(server.url))
    assert_same(images, open_source(pattern(str(folder))))
    assert server.asked["/1.tar"] == asked


def cut(path: Path, end: int) -> None:
    os.truncate(path, end)


def without_header(path: Path) -> None:
    """A damaged header of the third sample, which tarfile takes for the end of the file."""
    content = bytearray(path.read_bytes())
    content[2 * SAMPLE + 10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (partial(cut, end=2 * SAMPLE + 600), "/2.tar is broken or cut off (unexpected end of data)"),
        (
            partial(cut, end=2 * SAMPLE),
            "/2.tar is broken or cut off (it has no end but a member with empty h",
        ),
        (
            partial(cut, end=2 * SAMPLE + 100),
            "/2.tar is broken or cut off (it has no end but a member with tr",
        ),
        (without_header, "/2.tar is broken or cut off (it has no end but a member with bad checksum)"),
        (lambda path: path.write_text("no tar at all" * 100), "/2.tar is broken or cut off"),
        (lambda path: path.write_bytes(b""), "/2.tar is broken or cut off (empty file)"),
        (lambda path: path.unlink(), "/2.tar is not there"),
    ],
)
def test_a_broken_shard_is_named(
    server: Server, folder: Path, damage: Callable[[Path], object], line: str, cache: Path
) -> None:
    """Repaired, it is the only one that is read."""
    whole_shard = (folder / "2.tar").read_bytes()
    damage(folder / "2.tar")
    assert f"shard {server.url}{line}" in refusal(pattern(server.url))
    (folder / "2.tar").write_bytes(whole_shard)
    kept = {f"/{part.name.partition('-')[0]}" for part in parts(cache)}
    server.asked.clear()
    assert_same(open_source(pattern(server.url)), open_source(pattern(str(folder))))
    assert not kept & set(server.asked)
    assert not list(cache.rglob("*.tmp"))


def test_a_server_that_always_fails_is_one_line(server: Server) -> None:
    server.failing["/0.tar"] = [500] * 9
    line = refusal(f"wds:{server.url}/0.tar")
    assert line.startswith(f"wds:{server.url}/0.tar: shard {server.url}/0.tar cannot be read (500")
    assert server.asked["/0.tar"] == streaming.TRIES


def test_a_host_out_of_reach_is_one_line(folder: Path) -> None:
    with serving(folder) as server:
        url = server.url
    line = refusal(f"wds:{url}/0.tar")
    assert f"shard {url}/0.tar cannot be read (Cannot connect to host 127.0.0.1" in line
    assert "go online" in line


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("gopher://host/0.tar", "gopher:// is not opened; there are https, http, s3"),
        ("simplecache::https://host/0.tar", "simplecache::https:// is not opened"),
        ("https://host/*.tar", "name the shards of a URL by braces"),
        ("https://host/{0..3.tar", "a brace is not closed"),
        ("https://host/0.tar?side=big", "side=big: write the short side"),
        ("https://host/0.tar?side=4", "side=4: write the short side of the kept images in pixels, 16 to"),
        ("https://host/0.tar#val", "shards have no parts"),
    ],
)
def test_what_is_no_address_of_shards(where: str, line: str) -> None:
    assert line in refusal(f"wds:{where}")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    line = refusal("wds:s3://bucket/0.tar")
    assert line == "wds:s3://bucket/0.tar: s3:// needs the package s3fs: pip install s3fs"


def test_compressed_shards_are_read_too(tmp_path: Path, folder: Path) -> None:
    write_shards(tmp_path / "gz", SHARDS, EACH, "w:gz", "tar.gz")
    images = open_source(f"wds:{(tmp_path / 'gz').as_uri()}/{{0..{SHARDS - 1}}}.tar.gz")
    others = open_source(pattern(str(folder)))
    assert [images.content(k) for k in range(len(images))] == [others.content(k) for k in range(len(others))]


def one_shard(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"wds:{path.as_uri()}"


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(tmp_path: Path) -> None:
    spec = one_shard(tmp_path / "s.tar", {"a/0.jpg": digit(0), "a/1.jpg": b"none", "b/2.jpg": digit(2)})
    images = open_source(spec)
    local = open_source(f"wds:{tmp_path}/s.tar")
    with pytest.raises(UnreadableImage) as caught:
        images.image(1)
    with pytest.raises(UnreadableImage, match="not an image") as expected:
        local.image(1)
    assert str(caught.value) == str(expected.value)
    assert images.image(2).tobytes() == local.image(2).tobytes()
    assert images.classes == ("a", "b")


def test_what_is_passed_over_is_told_as_of_local_shards(tmp_path: Path) -> None:
    """Of several shards, images with further dots in their names are used only where there are no others."""
    one_shard(tmp_path / "0.tar", {"0.v2.jpg": digit(0), "x.cr2": b"raw"})
    one_shard(tmp_path / "1.tar", {"1.jpg": digit(1), "1.json": b'{"width": 3}'})
    images, local = (
        open_source(f"wds:{tmp_path.as_uri()}/{{0..1}}.tar"),
        open_source(f"wds:{tmp_path}/{{0..1}}.tar"),
    )
    assert list(images.ids) == list(local.ids) == ["1.tar/1.jpg"]
    assert images.content(0) == digit(1)
    assert len(images.notes) == 3
    assert [note.partition(".tar: ")[2] for note in images.notes] == [
        note.partition(".tar: ")[2] for note in local.notes
    ]
    assert "no images found" in refusal(one_shard(tmp_path / "2.tar", {"a.txt": b"words"}))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_part_is_read_again(
    server: Server, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = open_source(pattern(server.url))
    part = parts(cache)[1]
    content = bytearray(part.read_bytes())
    content[-60] ^= 1
    part.write_bytes(content[:-7] if damage == "cut" else content)
    server.asked.clear()
    assert_same(open_source(pattern(server.url)), images)
    assert f"{part}: damaged" in caplog.text
    assert server.asked == {f"/{part.name.partition('-')[0]}": 1}


def test_a_disk_without_room_for_all_is_told_after_the_first_shard(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    line = refusal(pattern(server.url))
    assert "more would be written to" in line
    assert "name a smaller side" in line


def test_a_full_disk_is_not_taken_for_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming.os, "fsync", full)
    assert "cannot be written (No space left on device)" in refusal(f"wds:{folder.as_uri()}/0.tar")


def test_a_process_that_dies_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LOOK", 0.05)
    monkeypatch.setattr(streaming, "small_jpeg", lambda *rest: os._exit(9))
    assert "a process that read shards died (exit code 9)" in refusal(pattern(folder.as_uri()))


def test_mutated_shards_are_read_or_named(tmp_path: Path) -> None:
    """60 shards with bytes changed or cut off: images, or one line; never another error."""
    chance = random.Random(0)
    write_shards(tmp_path / "good", 1, 4)
    good = (tmp_path / "good/0.tar").read_bytes()
    told = Counter[bool]()
    for number in range(60):
        content = bytearray(good)
        for _ in range(chance.randint(1, 10)):
            content[chance.randrange(len(good))] = chance.randrange(256)
        del content[chance.choice([len(good), chance.randrange(len(good))]) :]
        (tmp_path / f"{number}.tar").write_bytes(content)
        try:
            images = open_source(f"wds:{(tmp_path / f'{number}.tar').as_uri()}")
            told[True] += all(image.mode == "RGB" for image in readable(images))
        except TutelageError as error:
            told[False] += "\n" not in str(error)
    assert told[True] > 10
    assert told[False] > 10
    assert told.total() == 60


def readable(images: ImageSet) -> Iterator[Image.Image]:
    for index in range(len(images)):
        try:
            yield images.image(index)
        except UnreadableImage:
            continue


@pytest.mark.parametrize(("side", "kept"), [(16, True), (24, False)])
def test_a_run_takes_the_parts_for_its_packed_store(
    folder: Path, tmp_path: Path, side: int, kept: bool
) -> None:
    """Where they are no larger than what it needs; else it makes a store of its own."""
    name = pattern(folder.as_uri()).removesuffix(".tar") + f".tar?side={side}"
    recipe = parse_recipe({"data": {"train": name, "cache": "packed", "drop_duplicates": False}})
    splits = make_splits(recipe.data)
    place = tmp_path / "copies"
    specs = [InputSpec(16, 16)]
    found, decided = decode_once(splits, specs, recipe, place, Silent(), Runtime.start("cpu"))
    assert decided.packed["train"] is not None
    assert found.train.images.small
    assert not splits.train.images.small
    assert isinstance(found.train.images, PackedImages) != kept
    assert place.exists() != kept
    assert np.array_equal(found.train.labels, splits.train.labels)
    again, same = decode_once(splits, specs, recipe, place, Silent(), Runtime.start("cpu"), decided)
    assert same == decided
    assert again.train.images.digest() == found.train.images.digest()
    assert again.train.image(0).tobytes() == found.train.image(0).tobytes()


def test_shards_are_read_forwards_and_an_image_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bounds the memory: no read is larger than a block, and no place is read twice."""
    sizes: list[int] = []
    plain = remote._opened

    class Forwards(io.RawIOBase):
        def __init__(self, url: str) -> None:
            self.file = plain(url)

        def read(self, size: int = -1) -> bytes:
            sizes.append(size)
            return self.file.read(size)

    monkeypatch.setattr(remote, "_opened", Forwards)
    assert len(open_source(f"wds:{folder.as_uri()}/0.tar")) == EACH
    assert sizes
    assert 0 < min(sizes) <= max(sizes) <= remote.BLOCK
