"""Sources: what is found in folders, tar files and tables, under which identity and class."""

from __future__ import annotations

import io
import os
import random
import tarfile

import numpy as np
import pytest
from PIL import Image
from tests.helpers.refusals import source_refusal as refusal

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import Names, open_for_evaluation, open_source, parts_of


def picture(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 50, 50)).save(stream, "PNG")
    return stream.getvalue()


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())


# --- naming ---------------------------------------------------------------------------------------------


def test_names_hold_any_string_in_any_order():
    words = ["a", "", "näher", "x" * 300, "\udcff-undecodable"]
    names = Names(words)
    assert list(names) == words
    assert names[-1] == words[-1]
    assert names[1:3] == words[1:3]
    with pytest.raises(IndexError):
        names[5]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("foldr:x", "did you mean 'folder'?"),
        ("imagefolder:x", "did you mean 'folder'?"),
        ("digit", "did you mean 'digits'?"),
        ("", "unknown kind"),
        ("folder:", "say where after the colon"),
        ("digits:x", "write 'digits' alone"),
        ("digits#train", "the parts teacher and student; write digits#student"),
        ("digits#val", "the parts teacher and student; write digits#student"),
        ("no/such/photos", "unknown kind, and no such path; write a path that exists, folder:PATH"),
        ("hf", "say where after a colon, such as hf:PATH"),
        ("folder:/no/such/place", "folder:/no/such/place: no such folder"),
    ],
)
def test_a_source_that_is_none(spec, line):
    assert line in refusal(spec)


def test_a_path_that_exists_needs_no_kind(tmp_path, monkeypatch):
    put(tmp_path, "photos/train/cat/1.png", "photos/train/dog/1.png", "photos/val/dog/2.png", "hf/cat/1.png")
    monkeypatch.chdir(tmp_path)
    assert parts_of("photos") == ("train", "val")
    assert open_source("photos").name == open_source("folder:photos", "train").name == "folder:photos#train"
    assert list(open_source("photos#val").ids) == ["val/dog/2.png"]
    assert list(open_source(str(tmp_path / "photos" / "val")).ids) == ["dog/2.png"]
    assert list(open_source("hf").ids) == ["cat/1.png"]  # a kind alone is none: hf needs a colon
    assert "a file, not a folder" in refusal("photos/val/dog/2.png")
    assert "no part 'test'; it has train, val" in refusal("photos#test")


# --- digits ---------------------------------------------------------------------------------------------


def test_digits():
    digits = open_source("digits")
    assert len(digits) == 1797
    assert digits.classes == tuple("0123456789")
    image = digits.image(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert np.asarray(image).max() == 255 * 15 // 16  # the first digit's brightest of 0..16 is 15
    assert parts_of("digits") == ()


# --- folders --------------------------------------------------------------------------------------------


def test_a_tree_of_class_folders(tmp_path):
    put(tmp_path, "dog/1.png", "dog/deep/2.PNG", "cat/1.png", "cat/readme.txt", ".hidden/9.png")
    (tmp_path / "empty").mkdir()
    images = open_source(f"folder:{tmp_path}")
    assert images.classes == ("cat", "dog")
    assert list(images.ids) == ["cat/1.png", "dog/1.png", "dog/deep/2.PNG"]
    assert images.labels.tolist() == [0, 1, 1]
    assert images.image(0).size == (6, 4)
    assert parts_of(f"folder:{tmp_path}") == ()


def test_train_and_val_folders(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "validation/dog/2.png")
    spec = f"folder:{tmp_path}"
    assert parts_of(spec) == ("train", "val")
    assert list(open_source(spec).ids) == ["train/cat/1.png", "train/dog/1.png"]
    for named in (open_source(spec, "val"), open_source(f"{spec}#val"), open_for_evaluation(spec)):
        assert list(named.ids) == ["validation/dog/2.png"]
    assert parts_of(f"{spec}#val") == ()
    assert "no part 'test'; it has train, val" in refusal(f"{spec}#test")


def test_a_class_called_train_is_a_class(tmp_path):
    put(tmp_path, "train/1.png", "bus/1.png", "car/1.png")
    assert open_source(f"folder:{tmp_path}").classes == ("bus", "car", "train")


def test_a_folder_name_may_hold_a_hash(tmp_path):
    put(tmp_path, "photos#1/cat/1.png", "photos#1/dog/1.png")
    assert len(open_source(f"folder:{tmp_path}/photos#1")) == 2


@pytest.mark.parametrize("spelling", ["_unlabelled", "_unlabeled"])
def test_images_beside_the_classes_are_unlabelled_where_the_folder_says_so(tmp_path, spelling):
    for place in ("train/cat", "train/dog", f"train/{spelling}/holiday", spelling, "val/cat", "val/dog"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "a.png")
    part = open_source(f"folder:{tmp_path}/train")
    assert part.classes == ("cat", "dog")
    assert part.labels.tolist() == [0, 1, -1]
    train = open_source(f"folder:{tmp_path}")  # its training part, with the images beside it
    assert train.labels.tolist() == [0, 1, -1, -1]
    assert train.ids[2:] == [f"train/{spelling}/holiday/a.png", f"{spelling}/a.png"]
    assert train.image(3).size == (4, 4)
    assert open_source(f"folder:{tmp_path}#val").labels.tolist() == [0, 1]


def test_a_part_beside_unlabelled_images_is_a_part(tmp_path):
    for place in ("train/cat", "train/dog", "_unlabelled"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "a.png")
    assert open_source(f"folder:{tmp_path}").classes == ("cat", "dog")
    assert open_source(f"folder:{tmp_path}/_unlabelled").classes is None


def test_a_flat_folder_is_unlabelled(tmp_path):
    put(tmp_path, "2.png", "1.png")
    images = open_source(f"folder:{tmp_path}")
    assert list(images.ids) == ["1.png", "2.png"]
    assert images.classes is None
    assert images.labels is None


def test_odd_class_names_are_kept_as_they_are(tmp_path):
    odd = ["<b>&amp; 'quoted'", "a class, with: signs", "n01440764", "Ärger 100%"]
    put(tmp_path, *(f"{name}/1.png" for name in odd))
    assert open_source(f"folder:{tmp_path}").classes == tuple(sorted(odd))


def test_folders_that_hold_no_images(tmp_path):
    assert "no images found" in refusal(f"folder:{tmp_path}")
    put(tmp_path, "cat/1.png", "stray.png")
    assert "stray.png lies beside the class folders" in refusal(f"folder:{tmp_path}")
    assert "a file, not a folder" in refusal(f"folder:{tmp_path}/stray.png")


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    put(tmp_path, "elsewhere/1.png", "data/dog/1.png")
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/dog/again").symlink_to(tmp_path / "data/dog")
    assert list(open_source(f"folder:{tmp_path}/data").ids) == ["cat/1.png", "dog/1.png"]


def test_the_digest_knows_names_sizes_and_labels(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    first = open_source(f"folder:{tmp_path}").digest()
    assert open_source(f"folder:{tmp_path}").digest() == first
    (tmp_path / "dog/1.png").write_bytes(picture() + b"more")
    longer = open_source(f"folder:{tmp_path}").digest()
    os.rename(tmp_path / "dog/1.png", tmp_path / "dog/2.png")
    renamed = open_source(f"folder:{tmp_path}").digest()
    os.rename(tmp_path / "dog", tmp_path / "fox")
    assert len({first, longer, renamed, open_source(f"folder:{tmp_path}").digest()}) == 4


# --- WebDataset -----------------------------------------------------------------------------------------


def shard(path, members: dict[str, bytes], kind: str = "w") -> None:
    with tarfile.open(path, kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_with_braces_and_cls_members(tmp_path):
    for number in range(2):
        members = {}
        for key in ("a", "b"):
            members[f"{key}.png"] = picture(100 * number + (key == "b"))
            members[f"{key}.cls"] = b"10\n" if key == "b" else b"9"
            members[f"{key}.json"] = b"{}"
        shard(tmp_path / f"s-{number:03}.tar", members)
    images = open_source(f"wds:{tmp_path}/s-{{000..001}}.tar")
    assert list(images.ids) == ["s-000.tar/a.png", "s-000.tar/b.png", "s-001.tar/a.png", "s-001.tar/b.png"]
    assert images.classes == ("9", "10")  # by value, not by spelling
    assert images.labels.tolist() == [0, 1, 0, 1]
    assert [images.image(i).getpixel((0, 0))[0] for i in (3, 0, 2, 1)] == [101, 0, 100, 1]
    assert open_source(f"wds:{tmp_path}/s-*.tar").digest() == images.digest()


def test_a_tree_in_a_tar_has_its_folders_as_classes(tmp_path):
    members = {f"./val/{name}/x.{k}.seg.png": b"" for name in ("cat", "dog") for k in range(2)}
    members |= {f"./val/{name}/{k}.png": picture() for name in ("dog", "cat") for k in range(2)}
    shard(tmp_path / "tree.tar", members)
    images = open_source(f"wds:{tmp_path}/tree.tar")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, 1, 0, 0]


def test_a_shard_that_is_gone_is_one_line(tmp_path):
    shard(tmp_path / "s.tar", {"cat/0.png": picture(), "dog/1.png": picture()})
    images = open_source(f"wds:{tmp_path}/s.tar")
    assert images.stamp() == str((tmp_path / "s.tar").stat().st_mtime_ns)
    (tmp_path / "s.tar").unlink()
    with pytest.raises(TutelageError, match=r"s\.tar cannot be read any more \(No such file or directory\)"):
        images.stamp()


def test_members_that_would_leave_the_archive_stay_inside(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind, target in (
            ("a/link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("a/hard.png", tarfile.LNKTYPE, "/etc/passwd"),
            ("a/dev.png", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("/tmp/evil/x.png", "b/y.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
    images = open_source(f"wds:{tmp_path}/s.tar")
    assert images.classes == ("b", "evil")
    assert sorted(os.listdir(tmp_path)) == ["s.tar"]
    shard(tmp_path / "up.tar", {"../x.png": picture()})
    assert "class name '..' is refused" in refusal(f"wds:{tmp_path}/up.tar")


def test_class_names_that_are_paths_are_refused(tmp_path):
    for name in ("../../etc", "/etc", "a\\..\\b", "new\nline", "tab\x1b[2J"):
        shard(
            tmp_path / "s.tar",
            {"a.png": picture(), "a.cls": name.encode(), "b.png": picture(), "b.cls": b"ok"},
        )
        assert "is refused" in refusal(f"wds:{tmp_path}/s.tar")


@pytest.mark.parametrize(
    ("members", "classes", "labels"),
    [
        (("img.v2.0{}.png", "img.v2.0{}.cls"), ("0", "1"), [0, 1, 0, 1]),
        (("a.b.c.{}.jpg", "a.b.c.{}.cls.txt"), ("0", "1"), [0, 1, 0, 1]),
        (("x{}.jpg", 'x{}.json {"label": %d}'), ("0", "1"), [0, 1, 0, 1]),
        (("x{}.jpg", 'x{}.json {"caption": "k", "class_name": "c%d"}'), ("c0", "c1"), [0, 1, 0, 1]),
        (("d.x{}.jpg", 'd.x{}.json {"target": %d}'), ("0", "1"), [0, 1, 0, 1]),
        (("x{}.jpg", 'x{}.json {"label": 7}', "x{}.cls"), ("0", "1"), [0, 1, 0, 1]),
        (("x{}.jpg", "x{}.label"), ("0", "1"), [0, 1, 0, 1]),
        (("x{}.left.jpg", "x{}.cls"), ("0", "1"), [0, 1, 0, 1]),
        (("./y/x{}.jpg", "./y/x{}.cls"), ("0", "1"), [0, 1, 0, 1]),
    ],
)
def test_names_of_members_and_places_of_labels(tmp_path, members, classes, labels):
    contents = {}
    for number in range(4):
        for member in members:
            name, _, text = member.partition(" ")
            image = name.endswith(("png", "jpg"))
            label = (text % (number % 2) if "%d" in text else text) or str(number % 2)
            contents[name.format(number)] = picture(number) if image else label.encode()
    shard(tmp_path / "s.tar", contents)
    images = open_source(f"wds:{tmp_path}/s.tar")
    assert images.classes == classes
    assert images.labels.tolist() == labels
    assert images.image(3).getpixel((0, 0))[0] == 3


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"a.png": picture(), "a.json": b'{"caption": "x", "width": 6}'}, "members have caption, width"),
        ({"a.png": picture(), "a.txt": b"a caption"}, "looked for members .cls .cls.txt"),
        ({"a.png": picture(), "a.json": b"not json"}, "for .json with label, cls"),
        ({"a.png": picture(), "a.json": b'{"label": true}'}, "members have label"),
        ({"a.png": picture(), "b.cr2": b"raw", "c.nef": b"raw"}, "1 .cr2, 1 .nef passed over"),
        (
            {"a.png": picture(), "b.v2.png": picture()},
            "1 member passed over, whose suffix after the first dot",
        ),
    ],
)
def test_what_shards_do_not_give_is_told(tmp_path, members, line):
    shard(tmp_path / "s.tar", members)
    images = open_source(f"wds:{tmp_path}/s.tar")
    assert len(images) == 1
    assert images.labels is None
    assert any(line in note for note in images.notes)


def test_classes_in_bytes_that_are_no_utf8_stay_apart(tmp_path):
    classes = {"a.cls": b"caf\xe9", "b.cls": b"caf\xe8", "c.cls": "cafe\u0301".encode()}
    shard(tmp_path / "s.tar", {f"{k}.png": picture() for k in "abc"} | classes)
    images = open_source(f"wds:{tmp_path}/s.tar")
    assert images.classes == ("cafè", "café")
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("none-{0..3}.tar", "none-0.tar is not there"),
        ("none-*.tar", "no such shards"),
        ("s-{0..3.tar", "a brace is not closed"),
        ("s-{0..99999999999}.tar", "names more than"),
        ("text.tar", "not a readable, uncompressed tar file"),
        ("zipped.tar.gz", "not a readable, uncompressed tar file"),
        ("cut.tar", "not a readable, uncompressed tar file"),
        (
            "damaged.tar",
            "not a readable, uncompressed tar file (it has no end but a member with bad checksum)",
        ),
        (
            "without-end.tar",
            "not a readable, uncompressed tar file (it has no end but a member with empty header)",
        ),
        ("empty.tar", "no images found"),
    ],
)
def test_shards_that_are_none(tmp_path, pattern, line):
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    shard(tmp_path / "zipped.tar.gz", {"a.png": picture()}, "w:gz")
    shard(tmp_path / "cut.tar", {"a.png": os.urandom(5000)})
    os.truncate(tmp_path / "cut.tar", 2000)
    shard(tmp_path / "empty.tar", {"a.txt": b"words"})
    shard(
        tmp_path / "damaged.tar", {f"{k}.png": bytes(512) for k in range(3)}
    )  # 1,024 bytes each with its header
    content = (tmp_path / "damaged.tar").read_bytes()
    (tmp_path / "without-end.tar").write_bytes(content[: 2 * 1024])
    (tmp_path / "damaged.tar").write_bytes(content[:1034] + b"?" + content[1035:])
    assert line in refusal(f"wds:{tmp_path}/{pattern}")


def test_mutated_shards_are_read_or_named(tmp_path):
    """200 shards with bytes changed or cut off: images, or one line; never another error."""
    rng = random.Random(0)
    shard(tmp_path / "good.tar", {f"{c}/{k}.png": picture(k) for c in ("cat", "dog") for k in range(3)})
    good = (tmp_path / "good.tar").read_bytes()
    named = 0
    for _ in range(200):
        content = bytearray(good)
        for _ in range(rng.randint(1, 10)):
            content[rng.randrange(len(good))] = rng.randrange(256)
        del content[rng.choice([len(good), rng.randrange(len(good))]) :]
        (tmp_path / "bad.tar").write_bytes(content)
        try:
            images = open_source(f"wds:{tmp_path}/bad.tar")
            for index in range(len(images)):
                assert images.image(index).mode == "RGB"
        except TutelageError as error:
            named += "\n" not in str(error)
    assert 50 < named <= 200


# --- Hugging Face ---------------------------------------------------------------------------------------

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()


def table(shades, labels, **features):
    cells = [{"bytes": picture(shade), "path": None} for shade in shades]
    described = datasets.Features({"image": datasets.Image(), **features}) if features else None
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=described)


@pytest.mark.usefixtures("own_cache")
def test_a_folder_of_parquet_files(tmp_path):
    label = datasets.ClassLabel(names=["zebra", "ape"])
    table([1, 2, 3], [0, 1, 1], label=label).to_parquet(tmp_path / "d/train-00000-of-00001.parquet")
    table([4, 5], [1, 0], label=label).to_parquet(tmp_path / "d/validation-00000-of-00001.parquet")
    spec = f"hf:{tmp_path}/d"
    assert parts_of(spec) == ("train", "val")
    train, val = open_source(spec), open_source(f"{spec}#val")
    assert train.classes == ("zebra", "ape")  # the table's own order, which a pretrained head has
    assert train.labels.tolist() == [0, 1, 1]
    assert list(val.ids) == ["validation/0", "validation/1"]
    assert val.image(1).getpixel((0, 0))[0] == 5
    assert train.sizes().tolist() == [len(picture())] * 3
    assert "no part 'test'" in refusal(f"{spec}#test")


@pytest.mark.usefixtures("own_cache")
def test_two_splits_for_one_part_are_refused(tmp_path):
    for name in ("train", "validation", "dev"):
        table([1, 2], [0, 1], label=datasets.ClassLabel(names=["b", "a"])).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    saved = {
        name: datasets.Dataset.from_parquet(str(tmp_path / f"{name}.parquet"))
        for name in ("train", "validation", "dev")
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "d")
    spec = f"hf:{tmp_path}/d"
    assert parts_of(spec) == ("train", "val")
    assert "the splits validation and dev are both its part val" in refusal(spec, "val")
    assert len(open_source(f"{spec}#dev")) == 2


@pytest.mark.usefixtures("own_cache")
def test_one_parquet_file_without_annotations(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"img": [picture(1), picture(2), None, picture(3)], "label": ["dog", "cat", None, ""]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    images = open_source(f"hf:{tmp_path}/t.parquet")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, 0, -1, -1]
    assert images.image(1).getpixel((0, 0))[0] == 2
    with pytest.raises(TutelageError, match="the row holds no image"):
        images.image(2)


@pytest.mark.usefixtures("own_cache")
def test_a_saved_data_set(tmp_path):
    table([1, 2], [3, 12]).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert open_source(f"hf:{tmp_path}/saved").classes == ("3", "12")


@pytest.mark.usefixtures("own_cache")
def test_tables_that_are_none(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "no column holds images; it has text" in refusal(f"hf:{tmp_path}/text.parquet")
    assert "cannot be opened" in refusal(f"hf:{tmp_path}/broken.parquet")
    assert "no such file or folder" in refusal(f"hf:{tmp_path}/gone.parquet")


def test_the_hub_out_of_reach():
    line = refusal("hf:no-one/no-such-data-set")
    assert line.startswith("hf:no-one/no-such-data-set: the hub cannot be reached")
    assert "name a local folder" in line
