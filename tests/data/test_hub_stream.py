"""Hugging Face data sets that are streamed: the images of one that is loaded, and no question at a second start."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.helpers.shard_server import digit

from tutelage.core.errors import TutelageError
from tutelage.data.sources import hub, hub_stream, streaming
from tutelage.data.sources.base import ImageSet, open_for_evaluation, open_source, parts_of

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(streaming, "PAUSE", 0.01)
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def write_table(path: Path, numbers: range, labels: list[Any] | None = None) -> None:
    """A parquet file with digits in it; the first digits of scikit-learn's are 0, 1, 2..."""
    cells = [{"bytes": digit(number), "path": None} for number in numbers]
    label = datasets.Value("string") if labels else datasets.ClassLabel(names=CLASSES)
    features = datasets.Features({"image": datasets.Image(), "label": label})
    columns = {"image": cells, "label": labels or [number % 10 for number in numbers]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Parquet files of two splits, as the hub has them: three shards and one."""
    place = tmp_path / "digits"
    place.mkdir()
    for shard in range(3):
        write_table(place / f"train-{shard:05}-of-00003.parquet", range(shard * 4, shard * 4 + 4))
    write_table(place / "validation-00000-of-00001.parquet", range(12, 15))
    return place


def assert_same(images: ImageSet, others: ImageSet) -> None:
    assert list(images.ids) == list(others.ids)
    assert images.origin == others.origin
    assert images.classes == others.classes
    assert images.labels is not None
    assert others.labels is not None
    assert images.labels.tolist() == others.labels.tolist()
    for index in range(len(others)):
        assert images.image(index).tobytes() == others.image(index).tobytes()


def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(where: str, call: object) -> None:
        pytest.fail(f"{where} is asked")

    monkeypatch.setattr(hub_stream, "ask", ask)


def test_a_stream_has_the_images_of_what_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"hf:{folder}?streaming"
    assert parts_of(spec) == ("train", "val")
    train, val = open_source(spec), open_source(f"{spec}#val")
    assert_same(train, open_source(f"hf:{folder}"))
    assert_same(val, open_source(f"hf:{folder}#val"))
    assert train.classes == tuple(CLASSES)  # the table's own order
    unasked(monkeypatch)
    assert_same(open_source(spec), train)
    assert_same(open_for_evaluation(spec), val)


def test_a_folder_of_images_is_streamed(tmp_path: Path) -> None:
    """Its rows hold no bytes but paths."""
    for number in range(6):
        path = tmp_path / "photos/train" / "ba"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(digit(number))
    images = open_source(f"hf:{tmp_path}/photos?streaming")
    assert_same(images, open_source(f"hf:{tmp_path}/photos"))
    assert {images.content(index) for index in range(6)} == {digit(number) for number in range(6)}


def test_images_are_shrunk_to_the_side(folder: Path) -> None:
    images = open_source(f"hf:{folder}?streaming&side=16")
    assert images.side == 16
    assert images.image(0).size == (16, 16)
    assert images.digest() != open_source(f"hf:{folder}?streaming").digest()


def test_labels_that_are_texts_or_not_there(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", range(4), ["dog", "cat", "", "dog"])
    images = open_source(f"hf:{tmp_path}/t.parquet?streaming")
    assert_same(images, open_source(f"hf:{tmp_path}/t.parquet"))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, -1, 1]


def test_shards_that_were_read_are_kept_when_one_is_broken(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "train-00001-of-00003.parquet"
    content = broken.read_bytes()
    spec = f"hf:{folder}?streaming"
    monkeypatch.setattr(streaming.os, "cpu_count", lambda: 1)  # one process, which reads in order
    broken.write_bytes(content[: len(content) // 3])
    with pytest.raises(TutelageError) as caught:
        open_source(spec)
    assert f"{spec}#train: shard hf:{folder}#train/2-of-3 cannot be read (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Failed to read" not in capfd.readouterr().err  # datasets' own lines
    first = {part: part.stat().st_mtime_ns for part in cache.rglob("1-of-3-*.part")}
    assert len(first) == 1
    broken.write_bytes(content)
    assert_same(open_source(spec), open_source(f"hf:{folder}"))
    assert {part: part.stat().st_mtime_ns for part in first} == first


def test_a_data_set_that_has_changed_meanwhile_is_not_mixed(folder: Path, cache: Path) -> None:
    spec = f"hf:{folder}?streaming"
    open_source(spec)
    next(cache.rglob("2-of-3-*.part")).unlink()
    write_table(folder / "train-00003-of-00004.parquet", range(15, 18))
    with pytest.raises(
        TutelageError, match="the data set has changed since its first shards were read; delete"
    ):
        open_source(spec)


def test_the_hub_is_asked_for_one_revision(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hub's answers put in: it cannot be reached from a test."""
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []
    plain = datasets.load_dataset

    def load(path: str, name: str | None, *, revision: str, split: str, streaming: bool) -> Any:
        asked.append((path, name, revision, split))
        return plain(str(folder), split=split, streaming=streaming)

    class Api:
        def dataset_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(sha=f"sha-of-{name}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda name, config, revision: ["train", "validation"]
    )
    images = open_source("hf:org/digits:small?streaming")
    assert asked == [("org/digits", "small", "sha-of-org/digits", "train")]
    assert len(images) == 12
    next(cache.rglob("2-of-3-*.part")).unlink()
    monkeypatch.setattr(Api, "dataset_info", lambda self, name: SimpleNamespace(sha="a later one"))
    assert_same(open_source("hf:org/digits:small?streaming"), images)
    assert asked[1:] == asked[:1]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("no-one/no-such-data-set?streaming", "the hub cannot be reached"),
        ("/nowhere/at/all?streaming", "no such file or folder"),
        ("org/name?stream", "unknown option 'stream'; there are streaming and side=PIXELS"),
        ("org/name?streaming&side=1", "side=1: write the short side"),
        ("{folder}?streaming#test", "no part 'test'; it has train, val"),
        ("{folder}?streaming#train[:5]", "no split 'train[:5]'; it has train, validation"),
        ("{saved}?streaming", "it is on this disk already; write hf:"),
        ("{text}?streaming", "no column holds images; it has text"),
    ],
)
def test_what_cannot_be_streamed(folder: Path, tmp_path: Path, where: str, line: str) -> None:
    text = datasets.Dataset.from_dict({"text": ["a"]})
    text.to_parquet(tmp_path / "text.parquet")
    text.save_to_disk(tmp_path / "saved")
    where = where.format(folder=folder, saved=tmp_path / "saved", text=tmp_path / "text.parquet")
    with pytest.raises(TutelageError) as caught:
        open_source(f"hf:{where}")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_without_an_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": digit(0), "path": None}, None], "label": ["a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "t.parquet")
    images = open_source(f"hf:{tmp_path}/t.parquet?streaming")
    with pytest.raises(TutelageError, match=r"train/1: cannot be decoded \(the row holds no image"):
        images.image(1)
    assert images.image(0).size == Image.open(io.BytesIO(digit(0))).size


def test_a_question_mark_in_the_name_of_a_folder_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "what?").mkdir()
    assert not hub.is_streamed(str(tmp_path / "what?"))
