"""The kind of source ``npz``: ``npz:FILE.npz`` with arrays ``train_images``, ``train_labels``, ``val_images``...

MedMNIST's files are such: images are uint8 (N, H, W) or (N, H, W, 3), labels are integers (N,) or (N, 1).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import ImageSet


class Arrays(ImageSet):
    decoded = True  # the images lie in memory: there is nothing to gain from a decoded copy on disk

    def __init__(self, name: str, origin: str, images: np.ndarray, labels: np.ndarray) -> None:
        classes = [str(number) for number in range(int(labels.max()) + 1)]
        super().__init__(name, origin, [str(i) for i in range(len(images))], classes, labels)
        self._images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


def parts(where: str) -> tuple[str, ...]:
    if not Path(where).is_file():
        raise TutelageError(f"npz:{where}: no such file")
    with np.load(where) as arrays:  # pickles are refused, so that no file can run code
        return tuple(part for part in ("train", "val", "test") if f"{part}_images" in arrays)


def load(where: str, part: str | None) -> Arrays:
    if part not in parts(where):
        raise TutelageError(f"npz:{where}: there is no array {part or 'train'}_images")
    with np.load(where) as arrays:  # each part is an origin of its own: its images are other images
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    return Arrays(f"npz:{where}#{part}", f"{Path(where).resolve()}#{part}", images, labels.reshape(-1))
