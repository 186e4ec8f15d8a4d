"""A data set to try things on: downloaded by torchvision, and written as a folder of images that each command takes."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from tutelage.core.errors import TutelageError
from tutelage.core.files import unwritable
from tutelage.core.recipe import DataRecipe
from tutelage.data.sources.torchvision import cache_folder, known_set
from tutelage.data.splits import Splits, Subset, make_splits

PARTS = ("train", "val", "test")


def fetch(
    name: str, folder: Path, say: Callable[[str], object], step: Callable[[int, int], object]
) -> Splits:
    """Download a data set, and write it as ``train/``, ``val/`` and ``test/`` with a folder for each class.

    Parts that the set does not have are taken as in a run, stratified by class. The folder has its name only when it
    is complete.

    Args:
        name: of a data set of torchvision, such as FashionMNIST or torchvision:FashionMNIST.
        folder: is made.
        say: receives what is downloaded, and under which licence, before that happens.
        step: receives the number of images written, and of all.

    Returns:
        The images, as they were read from torchvision.

    Raises:
        TutelageError: the set is of another kind or does not exist, the folder exists, or the set cannot be downloaded
            or written.
    """
    kind, _, rest = name.rpartition(":")
    if kind not in ("", "torchvision"):
        raise TutelageError(
            f"--fetch {name}: only data sets of torchvision are written as folders, such as --fetch EuroSAT; name this "
            f"one as it is, such as `tutelage distill --data {name}`: what is not on this machine is then downloaded"
        )
    name = rest
    known = known_set(name)
    if folder.exists():
        raise TutelageError(
            f"--into {folder}: there is such a file or folder already; remove it or name another one"
        )
    say(f"{name}: about {known.megabytes:,} MB, kept in {cache_folder()}; licence: {known.licence}")
    # the sets' parts are official, and what of them is in another part is for their papers to say
    splits = make_splits(DataRecipe(train=f"torchvision:{name}", drop_duplicates=False))
    aside = folder.with_name(f".{folder.name}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{aside}.lock", timeout=0):
            shutil.rmtree(aside, ignore_errors=True)  # of a fetch that was stopped
            try:
                _write(splits, aside, step)
                aside.rename(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        Path(f"{aside}.lock").unlink(missing_ok=True)
    except Timeout:
        raise TutelageError(f"--into {folder}: another process is writing it; wait for it") from None
    except OSError as error:
        raise unwritable(folder, error) from None
    return splits


def _write(splits: Splits, folder: Path, step: Callable[[int, int], object]) -> None:
    parts: dict[str, Subset] = {part: getattr(splits, part) for part in PARTS}
    total, done = sum(map(len, parts.values())), 0
    for part, subset in parts.items():
        places = [folder / part / _folder_name(cls) for cls in subset.classes]
        for place in places:
            place.mkdir(parents=True)
        for position, label in enumerate(subset.labels.tolist()):
            index = int(subset.indices[position])
            number = subset.images.ids[index].rpartition("/")[2].zfill(6)
            content, suffix = subset.images.content(index), ".jpg"
            if content is None:  # the set is no files but an array
                stream, suffix = io.BytesIO(), ".png"
                subset.images.image(index).save(stream, "PNG")
                content = stream.getvalue()
            elif content.startswith((b"\x89PNG", b"P6")):
                suffix = ".png" if content.startswith(b"\x89PNG") else ".ppm"
            (places[label] / f"{number}{suffix}").write_bytes(content)
            done += 1
            step(done, total)


def _folder_name(cls: str) -> str:
    """The name of a class as that of a folder: Fashion-MNIST has a class T-shirt/top."""
    return cls.replace("/", "-").replace(os.sep, "-")
