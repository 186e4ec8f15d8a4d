"""The list of models: found by name, measured without weights, and where their weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from tutelage.core.errors import TutelageError
from tutelage.evaluation import catalogue
from tutelage.evaluation.catalogue import find_models, measured
from tutelage.evaluation.size import gmacs, params_m, size_mb


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the hub that holds one of the weights of test_resnet, and no weights of packages."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("tutelage.models.weights.PACKAGES", {})
    monkeypatch.setattr("tutelage.models.timm.PACKAGES", {})
    place = tmp_path / "models--timm--test_resnet.r160_in1k"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


def test_models_are_found_by_a_part_of_the_name_or_a_glob() -> None:
    assert [name for name, _ in find_models("efficientvit_b[01]")] == ["efficientvit_b0", "efficientvit_b1"]
    assert {"resnet50", "cspresnet50"} <= {name for name, _ in find_models("ResNet50")}
    assert all(name.startswith("resnet50") for name, _ in find_models("resnet50*"))
    assert "resnet50.a1_in1k" in [name for name, _ in find_models("resnet50.*")]


@pytest.mark.usefixtures("cached")
def test_weights_on_this_machine_come_first_and_are_all_that_is_listed_without_a_pattern() -> None:
    assert find_models(None) == [("test_resnet.r160_in1k", "cached")]
    found = find_models("test_*")
    assert found[0] == ("test_resnet", "cached")
    assert dict(found)["test_vit"] == "on the hub"
    assert dict(find_models("efficientnet_lite*"))["efficientnet_lite1"] == "none published"


@pytest.mark.usefixtures("cached")
def test_other_weights_than_the_default_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.models.names.in_cache", lambda name: name == "resnet18.tv_in1k")
    assert dict(find_models("resnet18"))["resnet18"] == ".tv_in1k cached"


def test_size_is_that_of_the_network_itself() -> None:
    row = measured("test_vit", "on the hub")
    module = timm.create_model("test_vit")
    assert (row.params_m, row.size_mb, row.resolution) == (params_m(module), size_mb(module), 160)
    assert row.gmacs == pytest.approx(gmacs(module, 160, 160))


def test_nothing_is_built_to_find_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    assert len(find_models("*")) > 1000


def test_macs_that_cannot_be_counted_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise NotImplementedError("meta")

    monkeypatch.setattr(catalogue, "gmacs", fails)
    row = measured("test_resnet", "")
    assert row.gmacs is None
    assert row.params_m > 0
    assert torch.get_default_device().type == "cpu"


def test_a_name_that_no_model_has_gets_the_nearest_one() -> None:
    with pytest.raises(
        TutelageError, match="no model of timm matches 'efficientvit_b9'; did you mean 'efficientvit_b"
    ):
        find_models("efficientvit_b9")
