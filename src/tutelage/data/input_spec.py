"""Which images a model takes, and the evaluation transform that makes them. Needs only Pillow and NumPy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash", "border")
LONG = 64  # times the crop's area; of an image that would be resized to more, only what the crop shows is resized


@dataclass(frozen=True)
class InputSpec:
    """A model's resolution, normalisation and evaluation crop, as timm's ``pretrained_cfg`` names them.

    Attributes:
        height: pixels.
        width: pixels.
        mean: of each channel, of pixels scaled to 0..1.
        std: of each channel, of pixels scaled to 0..1.
        crop_pct: share of the resized image's side that evaluation keeps.
        interpolation: a key of `FILTERS`.
        crop_mode: ``center``, ``squash`` or ``border``.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise TutelageError(f"input size {self.height}x{self.width}: use at least 1 pixel for both sides")
        if not self.crop_pct > 0:
            raise TutelageError(f"crop_pct {self.crop_pct}: use a number above 0")
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise TutelageError(
                f"mean {self.mean} and std {self.std}: give a number for each channel, std above 0"
            )
        if self.interpolation not in FILTERS:
            raise TutelageError(f"interpolation {self.interpolation!r}: use one of {', '.join(FILTERS)}")
        if self.crop_mode not in CROP_MODES:
            raise TutelageError(f"crop_mode {self.crop_mode!r}: use one of {', '.join(CROP_MODES)}")

    def at(self, resolution: int) -> InputSpec:
        """The same at another, square resolution in pixels."""
        return replace(self, height=resolution, width=resolution)

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> InputSpec:
        """From a timm ``pretrained_cfg`` or the result of ``timm.data.resolve_data_config``."""
        _, height, width = cfg.get("input_size") or (3, 224, 224)
        interpolation = cfg.get("interpolation") or "bicubic"
        return cls(
            height=int(height),
            width=int(width),
            mean=tuple(float(v) for v in cfg.get("mean") or cls.mean),
            std=tuple(float(v) for v in cfg.get("std") or cls.std),
            crop_pct=float(cfg.get("crop_pct") or cls.crop_pct),
            # timm's "random" is a training augmentation: evaluation takes its default
            interpolation=interpolation if interpolation in FILTERS else cls.interpolation,
            crop_mode=cfg.get("crop_mode") or cls.crop_mode,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_dict`.

        Raises:
            TutelageError: a key is missing, unknown or of the wrong kind.
        """
        try:
            known: dict[str, Any] = dict(values)
            return cls(**known | {k: tuple(map(float, known[k])) for k in ("mean", "std") if k in known})
        except (TypeError, ValueError) as error:
            raise TutelageError(f"input spec {dict(values)}: {error}") from None


@dataclass(frozen=True)
class IdInput(InputSpec):
    """What a model takes that knows its answers by the image: a hash of the image's name in the place of its pixels.

    So everything that runs a network runs such a model too. Mirroring does not change the input, which is one pixel
    wide, and its mean and std keep the bytes.
    """

    height: int = 8
    width: int = 1
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop_pct: float = 1.0

    def pixels(self, name: str) -> np.ndarray:
        """The hash of an image's name: uint8, (height, width, 3)."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=24).digest()
        return np.frombuffer(digest, np.uint8).reshape(8, 1, 3)


def eval_pixels(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """The evaluation view: resize by ``crop_pct``, then crop the centre, as timm does it.

    Args:
        image: RGB, any size.
        spec: input of the model.

    Returns:
        uint8, (height, width, 3).
    """
    filter_ = FILTERS[spec.interpolation]
    size = _resized(image.size, spec)
    if size[0] * size[1] > LONG * spec.width * spec.height:
        return np.asarray(_center(_middle(image, size, spec), spec))
    return np.asarray(_center(image.resize(size, filter_), spec))


def normalised(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Normalise uint8 (..., H, W, 3) to float32 (..., 3, H, W) with the model's mean and std."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return np.moveaxis(scaled, -1, -3)


def _resized(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """(width, height) to resize to before the crop."""
    width, height = size
    to_w, to_h = math.floor(spec.width / spec.crop_pct), math.floor(spec.height / spec.crop_pct)
    if spec.crop_mode == "squash":
        return to_w, to_h
    if spec.crop_mode == "center" and to_w == to_h:  # the long side is cut off, not rounded
        short = min(width, height)
        return int(to_w * width / short), int(to_h * height / short)
    ratios = (width / to_w, height / to_h)
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _middle(image: Image.Image, size: tuple[int, int], spec: InputSpec) -> Image.Image:
    """The part of an image, resized to `size`, that the crop shows: of a long thin one the rest is most of it."""
    spans = []
    for length, resized, want in zip(image.size, size, (spec.width, spec.height), strict=True):
        start, end = 0, resized
        if resized >= want:
            start = _offset(resized, want)
            end = start + want
        spans.append((start * length / resized, end * length / resized, end - start))
    (left, right, width), (top, bottom, height) = spans
    return image.resize((width, height), FILTERS[spec.interpolation], box=(left, top, right, bottom))


def _center(image: Image.Image, spec: InputSpec) -> Image.Image:
    left, top = _offset(image.width, spec.width), _offset(image.height, spec.height)
    if image.width >= spec.width and image.height >= spec.height:
        return image.crop((left, top, left + spec.width, top + spec.height))
    fill = tuple(round(255 * v) for v in spec.mean) if spec.crop_mode == "border" else 0
    canvas = Image.new(image.mode, (spec.width, spec.height), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _offset(have: int, want: int) -> int:
    """Where the crop begins; negative: the padding before the image. Rounded as timm and torchvision do."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
