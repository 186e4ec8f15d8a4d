"""Digits in colour, and a tiny network that knows them: with red and blue swapped, one class looks like another."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import eval_loader, normalise
from tutelage.data.sources.base import open_source
from tutelage.data.subset import whole
from tutelage.models.registry import load_model

PX = 32
DIGITS = 5  # classes are these digits, in each of two colours
COLOURS = {"red": (230, 90, 20), "blue": (20, 90, 230)}


def coloured_digits(root: Path, images: int = 400) -> str:
    """A folder of digits of 8 px, red or blue on a dark ground."""
    digits = open_source("digits")
    rng = np.random.default_rng(0)
    assert digits.labels is not None
    for number in np.flatnonzero(digits.labels < DIGITS)[:images]:
        name = rng.choice([*COLOURS])
        grey = np.asarray(digits.image(int(number)).convert("L"), np.float32) / 255
        ground = rng.uniform(0, 60, 3)
        picture = ground + grey[..., None] * (np.array(COLOURS[name]) - ground)
        place = root / f"{name}-{digits.labels[number]}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.round().astype(np.uint8)).save(place)
    return f"folder:{root}"


def fitted_to(data: str, spec: InputSpec, epochs: int = 8) -> nn.Module:
    """A network that was fitted to all images of a folder."""
    subset = whole(open_source(data))
    torch.manual_seed(0)
    network = load_model("test_resnet@none", num_classes=len(subset.classes)).module
    batches = eval_loader(subset, [spec], 128, 0)
    images = torch.cat([normalise(batch["images"][0], spec) for batch in batches])
    labels = torch.from_numpy(subset.labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            loss = cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()
