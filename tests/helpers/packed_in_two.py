"""Run by torchrun in two processes: both fill one packed store, and print which parts they wrote.

python -m torch.distributed.run --nproc_per_node 2 -m tests.helpers.packed_in_two PHOTOS PLACE CACHE_MB
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch import distributed

from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data import packing
from tutelage.data.decoded import decode_once
from tutelage.data.input_spec import InputSpec
from tutelage.data.splits import make_splits


def main() -> None:
    """Print the number of processes, what was decided, and the parts that this process wrote."""
    photos, place, megabytes = sys.argv[1:]
    packing.LEAST = 4
    wrote: list[str] = []
    plain = packing._write

    def write(images: packing._Jpegs, part: Path, *rest: object) -> None:
        wrote.append(part.name)
        plain(images, part, *rest)  # type: ignore[arg-type]

    packing._write = write  # type: ignore[assignment]
    recipe = parse_recipe({"data": {"train": photos, "cache_mb": float(megabytes)}})
    runtime = Runtime.start("cpu")
    splits, decided = decode_once(
        make_splits(recipe.data), [InputSpec(32, 32)], recipe, Path(place), Silent(), runtime
    )
    image = splits.train.image(0)
    row = {"processes": runtime.world_size, "wrote": wrote, "size": image.size, **decided.record()}
    (Path(place) / f"{runtime.rank}.json").write_text(json.dumps(row))
    distributed.destroy_process_group()  # else its threads may end this process by SIGABRT


if __name__ == "__main__":
    main()
