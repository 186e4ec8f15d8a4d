"""A zip file is read as the folder in it would be, without being unpacked."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.refusals import source_refusal as refusal

from tutelage.core.recipe import DataRecipe
from tutelage.data.decode import UnreadableImage
from tutelage.data.sources.base import open_source, parts_of
from tutelage.data.splits import make_splits


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "BMP")  # which deflate makes smaller
    return stream.getvalue()


def zipped(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, picture(number))
    return str(path)


PETS = [f"{cls}/{i}.bmp" for cls in ("cat", "dog") for i in range(4)]
LAYOUTS = [
    PETS,
    [f"photos/{name}" for name in PETS],
    [f"a/b/{part}/{name}" for part in ("train", "valid", "test") for name in PETS],
    [f"x/{part}/{name}" for part in ("Train", "test") for name in PETS] + ["x/_unlabelled/u.bmp"],
    [*PETS, "_unlabelled/u.bmp", "_unlabelled/v/w.bmp", "logo.bmp"],
    ["a.bmp", "b.bmp"],
    ["images/a.bmp", "images/b.bmp"],
    ["only/a.bmp", "only/b.bmp"],
    [f"猫 и كلب/{name}" for name in ("é/0.bmp", "שועל/1.bmp", "a b/2.bmp")],
    [*PETS, "__MACOSX/cat/._0.bmp", "cat/.hidden.bmp", ".DS_Store"],
]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
def test_a_zip_is_read_as_its_folder_is(tmp_path, names, method):
    where = zipped(tmp_path / "photos.zip", *names, method=method)
    with zipfile.ZipFile(where) as archive:
        archive.extractall(tmp_path / "unpacked")
    parts = parts_of(where)
    assert parts == parts_of(str(tmp_path / "unpacked"))
    for part in parts or (None,):
        ours, theirs = open_source(where, part), open_source(str(tmp_path / "unpacked"), part)
        assert ours.name == f"zip:{where}" + (f"#{part}" if part else "")
        assert list(ours.ids) == list(theirs.ids)
        assert ours.classes == theirs.classes
        assert (ours.labels is None) == (theirs.labels is None)
        assert ours.labels is None or np.array_equal(ours.labels, theirs.labels)
        assert ours.digest() == theirs.digest()  # so that a run goes on after the file was unpacked
        for index in range(len(ours)):
            assert np.array_equal(np.asarray(ours.image(index)), np.asarray(theirs.image(index)))
            assert ours.content(index) == theirs.content(index)
            assert ours.content(index, 20) == theirs.content(index, 20)


def test_a_zip_in_a_run(tmp_path):
    where = zipped(tmp_path / "photos.zip", *(f"{c}/{i}.bmp" for c in ("cat", "dog") for i in range(10)))
    splits = make_splits(DataRecipe(train=where))
    assert sorted([*splits.train.ids, *splits.val.ids, *splits.test.ids]) == sorted(
        f"{c}/{i}.bmp" for c in ("cat", "dog") for i in range(10)
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "photos.zip"]  # nothing is written beside it


def test_a_name_in_utf8_that_is_not_declared_as_such(tmp_path):
    """macOS's Finder writes names so; zip files say only that they are in an old code page."""
    path = tmp_path / "a.zip"
    zipped(path, "Katze groß/0.bmp", "dog/1.bmp")
    content = path.read_bytes()
    plain = bytearray(content)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(signature)
        while at >= 0:
            plain[at + offset + 1] &= ~0x08
            at = content.find(signature, at + 1)
    path.write_bytes(plain)
    assert open_source(str(path)).classes == ("Katze groß", "dog")


def test_windows_paths(tmp_path):
    info = zipfile.ZipInfo("x")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(("cat\\0.bmp", "dog\\1.bmp")):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, picture(number))
    assert open_source(str(path)).classes == ("cat", "dog")


def test_files_that_are_damaged_or_cannot_be_read(tmp_path):
    assert "no such file" in refusal(f"zip:{tmp_path}/a.zip")
    (tmp_path / "b.zip").write_bytes(b"PK\3\4 nothing")
    assert "no zip file that can be read" in refusal(str(tmp_path / "b.zip"))
    where = zipped(tmp_path / "c.zip", *PETS, method=zipfile.ZIP_LZMA)
    assert "cat/0.bmp is packed by a method other than deflate; unpack it" in refusal(where)
    assert "no images found" in refusal(zipped(tmp_path / "d.zip"))
    assert "no such folder" in refusal(zipped(tmp_path / "e.zip", *PETS) + "#holdout")
    loose = zipped(tmp_path / "f.zip", "cat/0.bmp", "loose.bmp")
    assert "loose.bmp lies beside the class folders" in refusal(loose)


def test_an_encrypted_zip(tmp_path):
    path = Path(zipped(tmp_path / "a.zip", *PETS))
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted; unpack it, and name the folder" in refusal(str(path))


def test_a_damaged_member_is_named(tmp_path):
    path = Path(zipped(tmp_path / "a.zip", *PETS, method=zipfile.ZIP_STORED))
    images = open_source(str(path))
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # a pixel of the first image
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"cat/0.bmp: cannot be decoded \(it is damaged in a.zip\)"):
        images.image(0)
    images.image(1)
    path.write_bytes(content[:400])
    with pytest.raises(UnreadableImage, match="it cannot be read from a"):
        images.image(5)


def test_links_and_lists_in_a_zip_are_not_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.bmp", picture(0))
        archive.writestr("labels.csv", "a,cat")
        link = zipfile.ZipInfo("b.bmp")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    images = open_source(str(path))
    assert list(images.ids) == ["a.bmp"]
    assert "lists in a zip (labels.csv) are not read; unpack it to use them" in images.notes[0]


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", b"\0" * 10_000_000)
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2") + 24
    content[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    images = open_source(str(path))
    assert len(images.content(0)) == 1000
    with pytest.raises(UnreadableImage):
        images.image(0)
