"""What is known of timm's networks without weights and arithmetic: they are built and run on PyTorch's meta device."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.recipe import Recipe
from tutelage.data.input_spec import InputSpec
from tutelage.models.registry import load_model, timm_name
from tutelage.models.source import resize

BATCH = 2  # images: a student in training mode needs two for its BatchNorm
UNITS = (32, 16, 14, 8)  # pixels that a fitting resolution is looked for in multiples of
STEPS = 4  # multiples of each unit that are tried on either side
NEW_CLASSES = tuple("abcdefg")  # of the head that `refused` puts on


def check_models(recipe: Recipe) -> None:
    """Refuse what can be known of a recipe's models before anything is computed.

    Networks of other libraries than timm, and those of the running program, are not looked at.

    Raises:
        TutelageError: a name is unknown, a checkpoint is not there, or a resolution does not fit.
    """
    wishes = [(f"teacher.{'others' if k else 'model'}", name) for k, name in enumerate(_teachers(recipe))]
    for key, spec, resolution in [
        *((key, name, recipe.teacher.resolution) for key, name in wishes),
        ("student.model", recipe.student.model, recipe.student.resolution),
    ]:
        name = timm_name(spec)
        if name is None:
            continue
        file = spec.partition("@")[2]
        if file not in ("", "none") and not Path(file).is_file():
            raise TutelageError(f"{key}={spec}: {file}: no such checkpoint file")
        if isinstance(resolution, int):
            check_resolution(name, resolution, f"{key.partition('.')[0]}.resolution={resolution}")


def check_resolution(name: str, resolution: int, key: str) -> None:
    """Refuse a resolution at which an architecture of timm cannot run.

    Args:
        name: timm's.
        resolution: of square images, in pixels.
        key: what the user wrote, which the error begins with.

    Raises:
        TutelageError: it does not fit; the line names the nearest ones that do.
    """
    own = _input(name).height
    if resolution == own or problem(name, own):
        return  # a network that the meta device cannot run shows nothing here
    if reason := problem(name, resolution):
        fitting = _near(name, resolution, own)
        raise TutelageError(
            f"{key}: {name} cannot run at {resolution} px ({reason[:120]}); it runs at {_listed(fitting)} px, such as "
            f"{key.partition('=')[0]}={min(fitting, key=lambda size: abs(size - resolution))}"
        )


@cache
def problem(name: str, resolution: int) -> str:
    """Why an architecture of timm cannot run at a resolution; empty where it can.

    Args:
        name: timm's.
        resolution: of square images, in pixels.
    """
    try:
        module, spec = _built(name), _input(name).at(resolution)
        resize(module, spec)
    except Exception as error:  # the networks raise anything
        return one_line(error)
    return _run(module, spec, torch.device("meta"))


def refused(name: str, device: torch.device) -> str:
    """Why an architecture of timm, with a new head, can be neither teacher nor student; empty where it can.

    Args:
        name: timm's.
        device: where it is built and run; on the meta device some networks fail that run on a real one.
    """
    try:
        with device:
            model = load_model(f"{name}@none").with_head(NEW_CLASSES)
        model.head_parameters()
    except Exception as error:  # the networks raise anything
        return one_line(error)
    return _run(model.module, model.input_spec, device)


def _run(module: nn.Module, spec: InputSpec, device: torch.device) -> str:
    """What goes wrong where a network is run as a teacher and as a student."""
    try:
        images = torch.zeros(BATCH, 3, spec.height, spec.width, device=device)
        outputs = module.eval()(images), module.train()(images)
    except Exception as error:  # the networks raise anything
        return one_line(error)
    for output in outputs:
        if not isinstance(output, Tensor) or output.shape[:-1] != (BATCH,):
            return f"gives {_shape(output)}, not logits of shape (B, C)"
    return ""


@cache
def _input(name: str) -> InputSpec:
    return InputSpec.of(resolve_data_config({}, model=_built(name)))


def _built(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def _near(name: str, wanted: int, own: int) -> list[int]:
    """The nearest fitting resolutions below and above the wanted one, and the architecture's own."""
    below = {wanted // unit * unit - k * unit for unit in UNITS for k in range(STEPS)}
    above = {-(-wanted // unit) * unit + k * unit for unit in UNITS for k in range(STEPS)}
    found = {own}
    for sizes in (sorted(below, reverse=True), sorted(above)):
        found |= {next((size for size in sizes if size > 0 and not problem(name, size)), own)}
    return sorted(found)


def _listed(sizes: list[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} and {last}" if most else last


def _shape(output: object) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _teachers(recipe: Recipe) -> list[str]:
    return [recipe.teacher.model, *recipe.teacher.others]
