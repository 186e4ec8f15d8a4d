"""Two steps with each term, in one process or in each of several."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import CrossEntropy, Term, make_term

IMAGES, BATCH = 24, 8
LAYERS = ("1", "3")
SETTINGS = {
    "attention_transfer": {"student": LAYERS, "teacher": LAYERS},
    "crd": {"width": 6, "negatives": 7},
    "similarity_preserving": {"student": "3", "teacher": "3"},
    "ickd": {"student": "3", "teacher": "3"},
    "token_mse": {"student": "3", "teacher": "3"},
    "feature_mse": {"student": "3", "teacher": "3"},
}
AS_ONE = [*SETTINGS, "rkd", "cka", "vkd", "srd", "mlld", "kl", "rld"]


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    layers = [nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def trained(term: Term, rank: int, processes: int) -> dict[str, Tensor]:
    """Return the losses of two steps with a term, and all that was learnt; each process has a part of the batch."""
    torch.manual_seed(5)
    distiller = Distiller(
        network(5), network(9), [term, CrossEntropy()], image_size=(16, 16), train_images=IMAGES
    )
    module: nn.Module = DistributedDataParallel(distiller) if processes > 1 else distiller
    # without momentum, and with a small rate: AdamW would make whole steps of rounding errors
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
    draw, losses = torch.Generator().manual_seed(1), []
    for _ in range(2):
        images, index = (
            torch.randn(BATCH, 3, 16, 16, generator=draw),
            torch.randperm(IMAGES, generator=draw)[:BATCH],
        )
        labels = index % 4
        mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        loss = module(images[mine], labels[mine], index=index[mine])["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach().clone()
        if processes > 1:
            distributed.all_reduce(mean)
        losses.append(mean / processes)
    return {"losses": torch.stack(losses), **distiller.state_dict()}


def every(rank: int = 0, processes: int = 1) -> dict[str, dict[str, Tensor]]:
    """Return `trained` of each term by its name."""
    return {name: trained(make_term(name, SETTINGS.get(name, {})), rank, processes) for name in AS_ONE}


def keep_every(place: Path) -> None:
    """Write what `every` gives in this process, one of several, to ``RANK.pt`` in a folder."""
    distributed.init_process_group("gloo")
    own = int(os.environ["RANK"])
    found = every(own, distributed.get_world_size())
    torch.save(found, place / f"{own}.pt")
    distributed.destroy_process_group()
