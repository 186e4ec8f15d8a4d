"""Teachers that another program runs: an ONNX or a LiteRT file, whose head and weights stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import digest
from tutelage.data.input_spec import InputSpec
from tutelage.models.kinds.names import listed_classes
from tutelage.models.source import Model

BESIDE = "preprocess.json"  # describes the input of a file in its folder
SETTINGS = (
    "layout",  # NCHW or NHWC; else as the input's shape shows
    "size",  # pixels, where the file takes any
    "channels",  # RGB or BGR
    "range",  # [0, 1], [-1, 1], [0, 255]: of the pixels before mean and std
    "mean",  # a number, or one a channel, in units of the range
    "std",
    "crop_pct",
    "interpolation",
    "crop_mode",
    "scale",  # of an integer input: real = scale * (integer - zero_point)
    "zero_point",
    "output",  # logits or probabilities; else as the output shows
    "classes",  # a file: one class a line, in the order of the head
)
ALMOST = 1e-3  # of a sum of probabilities to 1


@dataclass(frozen=True)
class Port:
    """The input of a file.

    Attributes:
        shape: with None where the file takes any size.
        dtype: NumPy's.
        scale: of an integer input, where the file names it.
        zero_point: as `scale`.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype
    scale: float | None = None
    zero_point: int = 0


class Engine:
    """Runs a file. A copy of a network shares it.

    Attributes:
        port: the file's input.
        batch: images that the file takes at a time; None: any number.
    """

    port: Port
    batch: int | None

    def call(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs (B, C) for as many images as the file takes."""
        raise NotImplementedError

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs (B, C) for any number of images in the file's own layout and type."""
        if self.batch in {None, len(images)}:
            return self.call(images)
        size = self.batch or 1
        found = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            found.append(self.call(padded)[: len(part)])
        return np.concatenate(found)

    def __deepcopy__(self, memo: object) -> Engine:
        return self


class FixedNetwork(nn.Module):
    """A file as a module: (B, 3, H, W) normalised images to (B, C) logits, on the CPU, without gradients.

    Its only state is the digest of the file, so that targets are cached by the file's content.

    Args:
        engine: runs it.
        content: SHA-256 of the file and of how its input is made.
        nhwc: the file wants the channels last.
        bgr: the file wants blue first.
        file_mb: size of the file in MiB (2^20 bytes).
        probabilities: the file gives probabilities, of which the logarithm is taken.
        scale: of an integer input; None: pixels as they are, rounded.
        zero_point: of an integer input.
    """

    def __init__(
        self,
        engine: Engine,
        content: bytes,
        *,
        nhwc: bool,
        bgr: bool,
        file_mb: float,
        probabilities: bool = False,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.nhwc, self.bgr, self.probabilities = nhwc, bgr, probabilities
        self.scale, self.zero_point, self.file_mb = scale, zero_point, file_mb
        self.register_buffer("content", torch.frombuffer(bytearray(content), dtype=torch.uint8))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Run the file."""
        batch = images.flip(1) if self.bgr else images
        batch = batch.permute(0, 2, 3, 1) if self.nhwc else batch
        array = batch.detach().float().contiguous().cpu().numpy()
        kind = self.engine.port.dtype
        if np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            array = np.rint(array / (self.scale or 1.0)) + self.zero_point
            array = array.clip(limits.min, limits.max)
        found = torch.from_numpy(np.asarray(self.engine.run(array.astype(kind, copy=False)), np.float32))
        found = found.flatten(1).to(images.device)
        return found.clamp_min(1e-12).log() if self.probabilities else found


class FixedModel(Model):
    """A model whose weights and head cannot change."""

    def with_head(self, classes: Sequence[str] | int) -> Model:
        """Refuse: nothing in the file can be trained.

        Raises:
            TutelageError: always.
        """
        names = "" if self.class_ids is None else f" ({', '.join(self.class_ids[:3])}, ...)"
        raise TutelageError(
            f"{self.spec}: its {self.num_classes} classes{names} are not those of the data, and a file gets no new "
            "head; list its classes as the data names them, one a line, and write ?classes=FILE behind its name"
        )

    def at(self, resolution: int) -> Model:
        """The model at another square resolution, if the file takes any size.

        Raises:
            TutelageError: the file has a size of its own.
        """
        assert isinstance(self.module, FixedNetwork)
        if self.input_spec.height == self.input_spec.width == resolution:
            return self
        sides = self.module.engine.port.shape[1:3] if self.module.nhwc else self.module.engine.port.shape[2:4]
        if any(sides):
            raise TutelageError(
                f"{self.spec}: takes images of {self.input_spec.height} px alone, not of {resolution} px; leave the "
                "resolution out"
            )
        return replace(self, input_spec=self.input_spec.at(resolution))


def described(path: Path, metadata: Mapping[str, str], given: Mapping[str, object]) -> dict[str, Any]:
    """Collect how a file's input is made: by settings behind its name, its metadata, and `BESIDE` it, in this order.

    Raises:
        TutelageError: a description cannot be read.
    """
    found: dict[str, Any] = {}
    beside = path.with_name(BESIDE)
    if beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise TutelageError(
                f"{beside}: cannot be read ({one_line(error)}); write a JSON object"
            ) from None
        if not isinstance(content, dict):
            raise TutelageError(f'{beside}: is not a JSON object, such as {{"mean": 0.5, "std": 0.5}}')
        found |= _plain(content)
    found |= _plain({key: _value(text) for key, text in metadata.items()})
    return found | dict(given)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a description. Files of tutelage have an ``input``, and class ids one a line."""
    found = {key: value for key, value in content.items() if key in SETTINGS}
    if isinstance(content.get("input"), dict):
        own = content["input"]
        found = {
            key: own[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode") if key in own
        }
        found["size"] = [own.get("height"), own.get("width")]
        found["range"] = [0, 1]
    ids = content.get("class_ids")
    if ids:
        found["class_ids"] = ids.splitlines() if isinstance(ids, str) else list(ids)
    return found


def fixed_model(spec: str, path: Path, engine: Engine, settings: Mapping[str, Any]) -> Model:
    """Make a model of a file.

    Args:
        spec: what the user wrote.
        path: of the file.
        engine: runs it.
        settings: how its input is made, see `SETTINGS`.

    Raises:
        TutelageError: a setting is of the wrong kind, or the file is no classifier of images.
    """
    port = engine.port
    nhwc, size = _layout(spec, port, settings)
    integer = np.issubdtype(port.dtype, np.integer)
    low, high = _pair(
        spec, "range", settings.get("range", [0, 255] if integer and not port.scale else [0, 1])
    )
    stated = {"mean", "std", "range"} & settings.keys()
    plain = bool(stated) or integer
    mean = _three(spec, "mean", settings.get("mean", 0.0 if plain else InputSpec.mean))
    std = _three(spec, "std", settings.get("std", 1.0 if plain else InputSpec.std))
    bgr = _choice(spec, "channels", settings, ("RGB", "BGR"), "RGB") == "BGR"
    order = slice(None, None, -1 if bgr else 1)  # the images are RGB until the network turns them round
    extra = {key: settings[key] for key in ("crop_pct", "interpolation", "crop_mode") if key in settings}
    try:
        input_spec = InputSpec(
            *size,
            mean=tuple((m - low) / (high - low) for m in mean)[order],
            std=tuple(s / (high - low) for s in std)[order],
            **extra,
        )
    except TypeError as error:
        raise TutelageError(f"{spec}: {one_line(error)}") from None
    files = [one for one in (path, path.with_name(f"{path.name}.data")) if one.is_file()]
    content = json.dumps([*(digest(one)["sha256"] for one in files), nhwc, bgr, settings.get("output")])
    unscaled = -128 if port.dtype == np.int8 and port.scale is None else 0  # pixels of 0 to 255 as int8
    network = FixedNetwork(
        engine,
        hashlib.sha256(content.encode()).digest(),
        nhwc=nhwc,
        bgr=bgr,
        file_mb=sum(one.stat().st_size for one in files) / 2**20,
        scale=settings.get("scale", port.scale),
        zero_point=int(settings.get("zero_point", port.zero_point or unscaled)),
    )
    network.probabilities = _gives_probabilities(spec, network, input_spec, settings)
    classes = settings.get("class_ids")
    if "classes" in settings:
        classes = listed_classes(Path(str(settings["classes"])))
    note = "" if plain else "; mean and std are not described, ImageNet's are assumed"
    model = Model.of(
        network,
        input_spec=input_spec,
        class_ids=classes,
        name=spec.partition("?")[0],
        origin=f"file {path}{note}",
    )
    return FixedModel(**vars(model))


def _layout(spec: str, port: Port, settings: Mapping[str, Any]) -> tuple[bool, tuple[int, int]]:
    """Return whether channels are last, and (height, width)."""
    shape = port.shape
    if len(shape) != 4:
        raise TutelageError(f"{spec}: takes an input of shape {list(shape)}, not images of four dimensions")
    guess = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
    nhwc = _choice(spec, "layout", settings, ("NCHW", "NHWC"), guess) == "NHWC"
    channels, sides = (shape[3], shape[1:3]) if nhwc else (shape[1], shape[2:4])
    if channels not in {3, None}:
        raise TutelageError(f"{spec}: takes images with {channels} channels, not 3; see ?layout=NHWC")
    wanted = settings.get("size")
    wanted = wanted if isinstance(wanted, list) else [wanted, wanted]
    size = [have or want for have, want in zip(sides, wanted, strict=False)]
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise TutelageError(f"{spec}: takes images of any size; write which one behind it, such as ?size=224")
    return nhwc, (int(size[0]), int(size[1]))


def _gives_probabilities(
    spec: str, network: FixedNetwork, input_spec: InputSpec, settings: Mapping[str, Any]
) -> bool:
    """Whether the outputs are probabilities: as described, or not negative and with a sum of one."""
    if "output" in settings:
        return _choice(spec, "output", settings, ("LOGITS", "PROBABILITIES"), "") == "PROBABILITIES"
    noise = torch.rand(2, 3, input_spec.height, input_spec.width, generator=torch.Generator().manual_seed(0))
    try:
        found = network(noise)
    except Exception as error:  # the runtime raises errors of its own
        raise TutelageError(f"{spec}: cannot be run ({one_line(error)[:200]})") from None
    return bool((found >= 0).all() and ((found.sum(1) - 1).abs() < ALMOST).all())


def _choice(spec: str, key: str, settings: Mapping[str, Any], known: tuple[str, ...], default: str) -> str:
    value = str(settings.get(key, default)).upper()
    value = next((one for one in known if value.startswith(one)), value)
    if value not in known:
        raise TutelageError(f"{spec}: {key}={settings[key]}: use {' or '.join(known)}")
    return value


def _three(spec: str, key: str, value: Any) -> tuple[float, ...]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, (int, float)) for one in values):
        raise TutelageError(f"{spec}: {key}={value}: give a number, or three, such as {key}=[0.5,0.5,0.5]")
    return tuple(float(one) for one in values)


def _pair(spec: str, key: str, value: Any) -> tuple[float, float]:
    values = list(value) if isinstance(value, (list, tuple)) else [0, value]
    if len(values) != 2 or not all(isinstance(one, (int, float)) for one in values) or values[0] >= values[1]:
        raise TutelageError(f"{spec}: {key}={value}: give two numbers, such as {key}=[0,255]")
    return float(values[0]), float(values[1])
