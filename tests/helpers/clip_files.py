"""Tiny CLIP models with random weights, in folders as open_clip writes them."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def write_clip(place: Path, **more: float) -> Path:
    """Write a tiny CLIP model as open_clip stores one."""
    place.mkdir()
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            **more,
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (place / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{place}", load_weights=False)
    save_file(
        {key: x.contiguous() for key, x in clip.state_dict().items()}, place / "open_clip_model.safetensors"
    )
    return place
