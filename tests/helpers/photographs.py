"""Folders of real photographs (pieces of the two that scikit-learn brings) with faults planted in them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64  # pixels of a piece
CONTRAST = 16  # of 255, standard deviation of the greys: less is sky, or the dark behind the flower

WRONG = (("temple", 5), ("temple", 20), ("flower", 5))  # pieces that get the other label


@dataclass
class Planted:
    """What was planted: ids in the training folder, and for copies the id in the test folder."""

    train: str
    test: str
    copies: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def pieces() -> dict[str, list[Image.Image]]:
    """Pieces of two photographs, of a temple and of a flower, that show more than sky; none overlaps another."""
    from sklearn.datasets import load_sample_images

    found = {}
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        photograph = Image.fromarray(pixels)
        squares = [
            photograph.crop((x, y, x + SIDE, y + SIDE))
            for y in range(0, photograph.height - SIDE + 1, SIDE)
            for x in range(0, photograph.width - SIDE + 1, SIDE)
        ]
        found[name] = [square for square in squares if np.asarray(square.convert("L")).std() > CONTRAST]
    return found


def save(image: Image.Image, path: Path, quality: int = 92) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
    return path


def plant(root: Path) -> Planted:
    """Write a folder for training and one for the test, with 20 test pictures in training, 5% wrong labels and more."""
    train, test = root / "train", root / "test"
    found = Planted(str(train), str(test))
    for name, images in pieces().items():
        other = {"temple": "flower", "flower": "temple"}[name]
        for number, image in enumerate(images[10:]):
            wrong = (name, number) in WRONG
            folder = other if wrong else name
            path = save(image, train / folder / f"{name}-{number:02}.jpg")
            found.wrong += [path.relative_to(train).as_posix()] if wrong else []
        for number, image in enumerate(images[:10]):
            held = save(image, test / name / f"{number}.jpg")
            path = train / name / f"copy-{number}.jpg"
            if number < 3:
                shutil.copy(held, path)
            elif number < 6:
                save(image, path, quality=50)
            elif number < 8:
                save(image.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS), path)
            else:
                save(image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC), path, quality=70)
            found.copies[path.relative_to(train).as_posix()] = held.relative_to(test).as_posix()
    temple = pieces()["temple"][30]
    broken = save(temple.rotate(90), train / "temple" / "broken.jpg")
    broken.write_bytes(broken.read_bytes()[:1500])
    save(temple.transpose(Image.Transpose.ROTATE_180), train / "alone" / "only.jpg")
    odd = pieces()["flower"][20].rotate(90)
    save(odd.point(lambda value: value * 0.1), train / "flower" / "dark.png")
    save(odd.filter(ImageFilter.GaussianBlur(10)), train / "flower" / "blurred.png")
    save(odd.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((12, 12)), train / "flower" / "tiny.png")
    save(odd.rotate(90).resize((160, 33)), train / "flower" / "long.png")
    save(Image.new("RGB", (64, 64), (90, 120, 90)), train / "flower" / "plain.png")
    return found
