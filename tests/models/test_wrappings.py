"""Checkpoints as common trainers write them: read as what they are, or refused with a line that says whose they are."""

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.models.registry import load_model
from tutelage.models.wrappings import unwrap

State = dict[str, Tensor]
NAME = "test_resnet"


def network(name: str = NAME, classes: int = 4) -> State:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes)
    state = module.state_dict()
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()
    }


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(part: str, state: State, layer: str = "layer1.0.") -> State:
    """A part of the names, as torch puts it in where one layer is wrapped."""
    return {name.replace(layer, f"{layer}{part}."): tensor for name, tensor in state.items()}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "ddp": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled ddp": lambda s: under("_orig_mod.module.", s),
    "ddp, compiled": lambda s: under("module._orig_mod.", s),
    "a layer compiled": lambda s: inside("_orig_mod", s),
    "fsdp": lambda s: under("_fsdp_wrapped_module.", s),
    "fsdp, layers too": lambda s: under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s)),
    "activation checkpoints": lambda s: inside("_checkpoint_wrapped_module", s),
    "fabric": lambda s: {"model": under("_forward_module.", s)},
    "lightning": lambda s: {
        "epoch": 3,
        "state_dict": {**under("model.", s), "criterion.weight": torch.ones(4), "val_acc.tp": torch.zeros(4)},
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning, twice": lambda s: {"state_dict": under("model.model.", s)},
    "lightning, net": lambda s: {"state_dict": under("net.", s)},
    "lightning, compiled": lambda s: {"state_dict": under("model._orig_mod.", s)},
    "lightning, averaged": lambda s: {
        "state_dict": {**under("model.", zeros(s)), **under("ema_model.module.", s)}
    },
    "hugging face": lambda s: under("timm_model.", s),
    "deepspeed": lambda s: {"module": s, "optimizer": None, "global_steps": 7},
    "deepspeed, ddp": lambda s: {"module": under("module.", s)},
    "swa": lambda s: {**under("module.", s), "n_averaged": torch.tensor(5)},
    "profiled": lambda s: {**s, "total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "timm": lambda s: {
        "epoch": 2,
        "arch": NAME,
        "state_dict": zeros(s),
        "state_dict_ema": s,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(71.3),
        "where": Path("out"),
    },
    "torchvision's references": lambda s: {
        "model": zeros(s),
        "model_ema": {**under("module.", s), "n_averaged": torch.ones(1)},
    },
    "averages that hold no tensors": lambda s: {"state_dict": s, "ema": {"decay": 0.99, "shadow": [1]}},
    "accelerate": lambda s: OrderedDict(under("base_model.", s)),
    "both alike": lambda s: {**under("model.", s), **under("best.", s)},
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_a_wrapped_checkpoint_is_read(kind: str, tmp_path: Path) -> None:
    state = network()
    torch.save(WRAPPINGS[kind](state), tmp_path / "a.pth")
    model = load_model(f"{NAME}@{tmp_path / 'a.pth'}")
    assert model.num_classes == 4
    for name, tensor in model.module.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, state[name])


def test_two_networks_that_both_fit_are_refused(tmp_path: Path) -> None:
    state = network()
    torch.save({**under("teacher.", state), **under("student.", zeros(state))}, tmp_path / "a.pth")
    with pytest.raises(
        TutelageError, match=r"a\.pth: holds 2 networks that would fit \(teacher\., student\.\); save"
    ):
        load_model(f"{NAME}@{tmp_path / 'a.pth'}")


def test_a_part_of_a_wrapper_that_the_network_has_itself_stays() -> None:
    state = {"module._orig_mod.a": torch.zeros(1), "total_ops": torch.zeros(1)}
    assert unwrap(state, list(state)).keys() == state.keys()


def test_what_is_missing_is_still_missing(tmp_path: Path) -> None:
    state = network()
    del state["layer1.0.conv1.weight"]
    torch.save(under("model.", state), tmp_path / "a.pth")
    with pytest.raises(TutelageError, match=r"\(1 missing: layer1\.0\.conv1\.weight\)"):
        load_model(f"{NAME}@{tmp_path / 'a.pth'}")


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_position_embeddings_of_another_resolution_are_resampled(name: str, tmp_path: Path) -> None:
    module = timm.create_model(name, num_classes=3)
    small = {k: v.clone() for k, v in module.state_dict().items()}
    extra = getattr(module, "num_prefix_tokens", 0) if small["pos_embed"].shape[1] % 2 else 0
    small["pos_embed"] = torch.randn(1, 6 * 6 + extra, small["pos_embed"].shape[2])
    torch.save(small, tmp_path / "a.pth")
    model = load_model(f"{name}@{tmp_path / 'a.pth'}")
    grid = module.patch_embed.grid_size
    wanted = resample_abs_pos_embed(small["pos_embed"], grid, num_prefix_tokens=extra)
    assert torch.allclose(model.module.get_parameter("pos_embed"), wanted, atol=1e-6)
    assert model.origin.endswith("converted by timm")


PAIRS = {
    "efficientnet_b0": "efficientnet_b0",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mnasnet_100": "mnasnet1_0",
    "convnext_tiny": "convnext_tiny",
    "densenet121": "densenet121",
    "resnet18": "resnet18",
    "resnext50_32x4d": "resnext50_32x4d",
    "vit_base_patch32_224": "vit_b_32",
    "swin_tiny_patch4_window7_224": "swin_t",
}


@pytest.mark.parametrize("ours", PAIRS)
def test_torchvisions_checkpoints_give_the_same_logits(ours: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(PAIRS[ours], weights=None, num_classes=6).eval()
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif ours.startswith("mobilenetv3") and name.endswith("running_var"):
            tensor.uniform_(0.01, 0.5)  # as small as in trained networks, where BatchNorm's eps counts
        elif name.endswith(("head.weight", "head.bias")):
            tensor.normal_(std=0.02)  # ViT's begins at zero
    torch.save({"model": under("module.", theirs.state_dict())}, tmp_path / "a.pth")
    model = load_model(f"{ours}@{tmp_path / 'a.pth'}")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted, found = theirs(images), model.module(images)
    assert wanted.std() > 0
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


FOREIGN = {
    "torchvision's": ("features.0.0.weight", "classifier.1.weight"),
    "Hugging Face transformers'": ("vit.embeddings.cls_token", "classifier.weight"),
    "OpenCLIP's": ("visual.conv1.weight", "logit_scale"),
    "OpenMMLab's": ("backbone.conv1.weight", "head.fc.weight"),
    "fastai's": ("0.0.weight", "1.8.weight"),
}


@pytest.mark.parametrize("library", FOREIGN)
def test_the_line_says_whose_names_they_look_like(library: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2, 2) for name in FOREIGN[library]}, tmp_path / "a.pth")
    with pytest.raises(
        TutelageError, match=f"its names look like {library}; give the name of the architecture"
    ):
        load_model(f"{NAME}@{tmp_path / 'a.pth'}")
