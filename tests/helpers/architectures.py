"""The architectures on which the conversion to each format is tried: no two have the same kinds of layers."""

from __future__ import annotations

from functools import partial

import timm
import torch
from timm.layers import GroupNorm
from torch import nn

from tutelage.data.input_spec import InputSpec
from tutelage.models.registry import load_model

SMALL_GROUP_NORM = "group norm"
FIVE = (
    "tf_efficientnet_lite0",
    "efficientvit_b1",
    "mobilenetv4_conv_small",
    "vit_tiny_patch16_224",
    "convnext_atto",
)
SIX = (*FIVE, "resnet50_gn")  # GroupNorm
SIX_SMALL = (*FIVE, SMALL_GROUP_NORM)


def group_norm_net(num_classes: int = 1000) -> nn.Module:
    """A small ResNet with GroupNorm, for 96 x 96 pixels."""
    return timm.create_model(
        "test_resnet", norm_layer=partial(GroupNorm, num_groups=8), num_classes=num_classes
    ).eval()


def network(name: str) -> tuple[nn.Module, InputSpec]:
    """One of these architectures with random weights, the same each time, and its input."""
    torch.manual_seed(0)
    if name == SMALL_GROUP_NORM:
        return group_norm_net(), InputSpec(96, 96)
    model = load_model(f"{name}@none")
    return model.module.eval(), model.input_spec
