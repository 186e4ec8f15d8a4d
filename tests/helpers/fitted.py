"""Tiny networks that know the digits, saved as a user's checkpoints are: a pretrained start in small."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tutelage.data.loading import eval_loader, normalise
from tutelage.data.splits import Subset
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights

PX = 32


def fit(
    name: str,
    subset: Subset,
    path: Path,
    *,
    epochs: int = 4,
    lr: float = 3e-3,
    smoothing: float = 0.0,
    seed: int = 0,
    labels: np.ndarray | None = None,
) -> str:
    """Fit a network on the plain images of a part, and give its NAME@WEIGHTS."""
    torch.manual_seed(seed)
    model = load_model(f"{name}@none", num_classes=10)
    model = model.at(PX)
    spec = model.input_spec
    images = torch.cat(
        [normalise(b["images"][0], spec, torch.device("cpu")) for b in eval_loader(subset, [spec], 128, 0)]
    )
    truth = torch.from_numpy(subset.labels if labels is None else labels)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=lr)
    model.module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(truth)).split(32):
            if len(batch) < 8:
                continue
            loss = cross_entropy(model.module(images[batch]), truth[batch], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.module.eval()
    metadata = model.metadata() | {"class_ids": '["0","1","2","3","4","5","6","7","8","9"]'}
    metadata.pop("class_names", None)
    save_weights(model.module, path, metadata)
    return f"{name}@{path}"
