"""Data sets of torchvision: opened from the cache, and one line where they cannot be downloaded."""

from __future__ import annotations

import numpy as np
import pytest
import torchvision
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.base import open_source, parts_of
from tutelage.data.sources.torchvision import KNOWN
from tutelage.data.splits import make_splits


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""

    def unreachable(*_, **__):
        raise OSError("the network is unreachable")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in ("mnist", "eurosat", "flowers102", "oxford_iiit_pet"):
        for function in ("download_and_extract_archive", "download_url"):
            monkeypatch.setattr(f"torchvision.datasets.{module}.{function}", unreachable, raising=False)
    return tmp_path / "tutelage" / "torchvision"


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as MNIST's files have it."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def fashion(cache) -> np.ndarray:
    raw = cache / "fashionmnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    for part, count, chosen in (("train", 60, pixels[:60]), ("t10k", 20, pixels[60:])):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(chosen))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[:count]))
    return pixels


def test_a_set_in_the_cache_needs_no_network(cache):
    pixels = fashion(cache)
    assert parts_of("torchvision:FashionMNIST") == ("train", "test")
    images = open_source("torchvision:FashionMNIST#test")
    assert len(images) == 20
    assert images.classes[:2] == ("T-shirt/top", "Trouser")
    assert images.labels.tolist() == [n % 10 for n in range(20)]
    assert images.image(3).mode == "RGB"
    assert np.array_equal(np.asarray(images.image(3))[..., 0], pixels[63])
    splits = make_splits(DataRecipe(train="torchvision:FashionMNIST"))
    assert len(splits.test) == 20
    assert len(splits.train) + len(splits.val) == 60
    assert not set(splits.train.ids) & set(splits.test.ids)


def test_a_set_of_files(cache):
    for number, name in enumerate(("Forest", "River")):
        place = cache / "eurosat" / "eurosat" / "2750" / name
        place.mkdir(parents=True)
        for shade in range(3):
            Image.new("RGB", (8, 8), (shade, number, 9)).save(place / f"{shade}.png")
    images = open_source("torchvision:EuroSAT")
    assert parts_of("torchvision:EuroSAT") == ()
    assert (images.classes, images.labels.tolist()) == (("Forest", "River"), [0, 0, 0, 1, 1, 1])
    assert images.image(5).getpixel((0, 0)) == (2, 1, 9)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("torchvision:FashionMNIST", "it cannot be downloaded (.*); go online (about 31 MB), or copy that"),
        ("torchvision:Flowers102#val", "the network is unreachable"),
        ("torchvision:fashionmnist", "no such data set; did you mean 'FashionMNIST'?"),
        ("torchvision:Nothing", "there are CIFAR10,"),
        ("torchvision:FashionMNIST#val", "it has train, test"),
    ],
)
def test_one_line_where_it_cannot_be_had(cache, spec, expected):
    with pytest.raises(TutelageError) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    for piece in expected.split(".*"):
        assert piece in str(caught.value)


def test_all_known_sets_are_torchvisions(cache):
    """Each has the arguments that are given; without the network, each ends in one line."""
    import inspect

    for name, known in KNOWN.items():
        accepted = inspect.signature(getattr(torchvision.datasets, name)).parameters
        assert {"root", "download"} <= set(accepted), name
        for arguments in known.parts.values():
            assert set(arguments) <= set(accepted), name
