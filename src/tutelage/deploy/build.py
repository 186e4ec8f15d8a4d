"""The deployable files of a model, made from its PyTorch module; each can be used as a model again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import files_in
from tutelage.core.recipe import ExportRecipe
from tutelage.data.loading import BadImages, eval_loader
from tutelage.data.splits import Subset
from tutelage.deploy.formats.making import Making, Say, reason, require
from tutelage.deploy.formats.registry import MAKERS
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.manifest import one_line as as_label
from tutelage.deploy.parity import Inspected
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.runtimes.base import Arithmetic, Runtime, Session, Variant
from tutelage.deploy.runtimes.registry import files_of, open_session, runtimes_of
from tutelage.models.class_mapping import head_labels
from tutelage.models.source import Model

CALIBRATION = 300  # images: NNCF's default; ranges of activations hardly change with more
VALIDATION_IMAGES = 500  # images on which the accuracy of int8 is measured
READ = 64  # images per batch
MIB = 2**20
FORMATS = ExportRecipe().formats


@dataclass(frozen=True)
class Material:
    """The images that quantisation needs.

    Attributes:
        calibration: un-augmented training images.
        validation: images to measure the loss of accuracy on while quantising; None: the calibration images.
        max_drop: points of top-1 that int8 may lose on them before layers go back to float32.
        int4: also make files with weights in 4 bits, in formats that have such.
    """

    calibration: Subset
    validation: Subset | None = None
    max_drop: float = 1.0
    int4: bool = False


@dataclass(frozen=True, eq=False)
class Deployed:
    """A model and its files."""

    model: Model
    directory: Path
    manifest: Manifest
    variants: tuple[Variant, ...]  # those that can be run here
    missing: Mapping[str, str] = field(
        default_factory=dict
    )  # files that could not be made, each with the reason
    inspected: tuple[Inspected, ...] = ()  # files that are for other machines

    def size_mb(self, variant: Variant) -> float:
        """Size of all that the runtime loads, in MiB (2^20 bytes)."""
        return _size_mb(self.directory / variant.file)


def build(
    model: Model,
    directory: Path,
    material: Material | None,
    provenance: Mapping[str, str] | None = None,
    say: Say = lambda line: None,
    temperature: float = 1.0,
    formats: Sequence[str] = FORMATS,
) -> Deployed:
    """Write the files of these formats, and, with `material`, the same in int8.

    Where one of the files cannot be made, the others are.

    Args:
        model: on any device; it is not changed.
        directory: an existing directory.
        material: images for int8; None: no int8 files are made.
        provenance: notes on the origin to be stored in the files, besides versions and weights.
        say: called with a line before each step.
        temperature: at which the model is calibrated.
        formats: as in the recipe's ``export.formats``.

    Raises:
        TutelageError: there is no such format, its extra is not installed, or none of the files can be made.
    """
    runtimes = runtimes_of(formats)
    require(runtimes)
    used = dict.fromkeys(name for runtime in runtimes for name in runtime.converters)
    manifest = replace(_manifest(model, material, provenance or {}, used), temperature=temperature)
    calibration = validation = None
    if material:
        calibration = pictures(model, material.calibration, CALIBRATION)
        validation = _labelled(
            pictures(model, material.validation or material.calibration, VALIDATION_IMAGES)
        )
    making = Making(
        model,
        directory,
        manifest,
        say,
        calibration,
        validation,
        material.max_drop if material else 0.0,
        material is not None and material.int4,
    )
    for name, make in MAKERS.items():
        runtime = next((one for one in runtimes if one.format == name), None)
        if runtime is not None:
            say(f"{model.spec}: {runtime.title}")
            make(making)
    made = [
        (runtime, variant)
        for runtime in runtimes
        for variant in runtime.variants
        if (directory / variant.file).exists()
    ]
    variants = tuple(variant for runtime, variant in made if runtime.runs_here and runtime.supports(variant))
    inspected = tuple(
        _inspected(runtime, variant, model, directory) for runtime, variant in made if not runtime.runs_here
    )
    if not made:
        first = next(iter(making.failures.values()))
        raise first if isinstance(first, TutelageError) else TutelageError(f"{model.spec}: {reason(first)}")
    missing = {file: reason(error) for file, error in making.failures.items()}
    return Deployed(model, directory, manifest, variants, missing, inspected)


def _inspected(runtime: Runtime, variant: Variant, model: Model, directory: Path) -> Inspected:
    path, spec = directory / variant.file, model.input_spec
    found = runtime.inspect(path, (1, 3, spec.height, spec.width), model.num_classes)
    return Inspected(variant, _size_mb(path), found)


def _size_mb(path: Path) -> float:
    """Size of a model file and all that belongs to it, in MiB."""
    return sum(file.stat().st_size for part in files_of(path) for file in files_in(part)) / MIB


def as_model(deployed: Deployed, variant: Variant, batch_size: int) -> Model:
    """A file as a model on the CPU, which can be measured like any other model.

    Args:
        deployed: the model with its files.
        variant: which of the files.
        batch_size: the file is compiled for batches of this size and of 1.
    """
    model = deployed.model
    module = _FileModule(deployed.directory / variant.file, variant.arithmetic, batch_size, model.num_classes)
    return replace(model, spec=f"{model.spec} {variant.role}", module=module)


class _FileModule(nn.Module):
    """A file compiled for batches of 1 and of `batch_size`; smaller batches are padded."""

    def __init__(self, path: Path, arithmetic: Arithmetic, batch_size: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.memory_format = torch.contiguous_format
        self._batch_size = batch_size
        self._open = lambda batch: open_session(
            path, batch=batch, arithmetic=arithmetic, threads=torch.get_num_threads()
        )
        self._sessions: dict[int, Session] = {}

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            return self._run(images, 1)
        size = self._batch_size
        if len(images) <= size:
            return self._run(images, size)
        return torch.cat([self._run(images[i : i + size], size) for i in range(0, len(images), size)])

    def _run(self, images: Tensor, size: int) -> Tensor:
        if size not in self._sessions:
            self._sessions[size] = self._open(size)
        # without torch, whose threads would keep spinning beside those of the runtime
        given = images.numpy()
        if len(given) < size:
            given = np.concatenate([given, np.zeros((size - len(given), *given.shape[1:]), given.dtype)])
        return torch.from_numpy(self._sessions[size](given)[: len(images)])


def _manifest(
    model: Model, material: Material | None, provenance: Mapping[str, str], used: Iterable[str]
) -> Manifest:
    ids = model.class_ids or tuple(str(number) for number in range(model.num_classes))
    facts = {
        "weights": model.origin,
        **({"licence": model.licence} if model.licence else {}),
        **_versions(("tutelage", "torch", "timm", *used)),
        **provenance,
    }
    if material:
        facts["calibration"] = f"{material.calibration.images.name} {material.calibration.digest()[:16]}"
    return Manifest(model.name, model.input_spec, tuple(map(as_label, model.class_names or ids)), ids, facts)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed under its own name, unlike onnxruntime of onnxruntime-gpu."""
    found: dict[str, str] = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def pictures(model: Model, subset: Subset, wanted: int) -> Pictures:
    """Evaluation views of this many images, evenly spaced in the subset: always the same ones."""
    count = min(wanted, len(subset))
    some = replace(subset, indices=subset.indices[np.arange(count) * len(subset) // count])
    labels = head_labels(model, some)
    pixels: list[np.ndarray] = []
    places: list[int] = []
    for batch in eval_loader(some, [model.input_spec], READ, workers=0, bad=BadImages(count // 2)):
        pixels.append(batch["images"][0].permute(0, 2, 3, 1).numpy())
        places += batch["index"].tolist()
    return Pictures(np.concatenate(pixels), labels[places])


def _labelled(pictures: Pictures) -> Pictures | None:
    known = pictures.labels >= 0
    return Pictures(pictures.pixels[known], pictures.labels[known]) if known.any() else None
