"""Divide imagenet-sample, which has one image a class, for a cascade: lists for val and test, and copies to train on.

The mirrored copies let a run begin that needs images of all classes. At a learning rate near zero its student stays as
it was pretrained, so that the cascade is of two published networks.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageOps


def divide(root: Path) -> None:
    """Write ``val.csv`` and ``test.csv`` (half of the images each) into `root`, and ``<root>-mirrored`` beside it."""
    images = sorted(file for folder in root.iterdir() if folder.is_dir() for file in folder.iterdir())
    for file in images:
        copy = root.with_name(f"{root.name}-mirrored") / file.parent.name / f"{file.stem}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            ImageOps.mirror(image.convert("RGB")).save(copy, quality=90)
    random.Random(0).shuffle(images)
    half = len(images) // 2
    for name, part in (("val", images[:half]), ("test", images[half:])):
        with open(root / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["path", "label"])
            rows.writerows([file.relative_to(root).as_posix(), file.parent.name] for file in part)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the unpacked imagenet-sample")
    divide(parser.parse_args().root)
