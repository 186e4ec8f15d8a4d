"""Whether each teacher is described rightly: its images and the order of its classes, by its accuracy on val."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.files import read_json
from tutelage.core.progress import Progress
from tutelage.core.run_dir import Run
from tutelage.evaluation.input_variants import (
    DESCRIPTIONS,
    Fault,
    Probed,
    Variant,
    probe_description,
    turns_channels,
)
from tutelage.evaluation.predict import Predictions
from tutelage.models.kinds.fixed import FixedModel
from tutelage.models.kinds.zero_shot import ZeroShotModel
from tutelage.models.source import Model
from tutelage.models.timm import CLASS_LIST, TimmModel
from tutelage.pipeline.choices import fitted_teachers
from tutelage.pipeline.stages.prepare import Prepared

SHOWN = 12  # classes of an order, in a sentence


def check_descriptions(
    prepared: Prepared, teachers: Sequence[Model], on_val: Sequence[Predictions]
) -> list[dict[str, Any]]:
    """Check each teacher that keeps the head and the weights that it came with, and report what is wrong.

    A teacher that was fitted has learnt from its images as they are made here. A zero-shot model gets the images of
    its library, and a head in the order of the data.

    Args:
        prepared: the data, with labels on val, and the recipe.
        teachers: as they are used.
        on_val: what each of them answers.

    Returns:
        A record of each teacher that was checked, for preflight.json.
    """
    mapping, context = prepared.class_mapping, prepared.context
    fitted = fitted_teachers(prepared.recipe, prepared.teachers, mapping.due)
    records = []
    for place, (model, found) in enumerate(zip(teachers, on_val, strict=True)):
        new = place in fitted or model.spec in mapping.new or not model.pretrained
        if new or isinstance(model, ZeroShotModel):
            continue
        val = prepared.splits.val
        probed = probe_description(model, val, mapping.index, found, context.runtime, context.loading)
        records.append(_record(prepared, place, model, probed))
    say_faults(context.progress, records)
    return records


def say_faults(progress: Progress, records: Sequence[Mapping[str, Any]]) -> None:
    """Report what is wrong with teachers, one line for each."""
    for line in faults(records):
        progress.say(f"warning: {line}")


def faults(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sentences about teachers that are described wrongly."""
    return [record["sentence"] for record in records if record["fault"]]


def recorded_faults(run: Run) -> list[str]:
    """Return the same for a run, as its pre-flight recorded them."""
    return faults(read_json(run.preflight).get(DESCRIPTIONS, [])) if run.preflight.exists() else []


def as_checks(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the records as checks of the pre-flight."""
    for record in records:
        name = "teacher described rightly" if len(records) == 1 else f"{record['model']} described rightly"
        yield {"name": name, "ok": not record["fault"], "detail": record["sentence"]}


def _record(prepared: Prepared, place: int, model: Model, probed: Probed) -> dict[str, Any]:
    fault = probed.fault
    record: dict[str, Any] = {
        "place": place,
        "model": model.spec,
        "tried": {"inputs": probed.inputs, "images": probed.images, "order": probed.order},
        "fault": None,
        "sentence": _nothing(probed),
    }
    if fault is None:
        return record
    figures = {"top1": fault.top1, "given": fault.given, "n": fault.n, "p": fault.p}
    if fault.variant is not None:
        write = _renamed(model, fault.variant)
        own: dict[str, Any] = {"fault": "input", "with": fault.variant.words, "write": write}
        sentence = _about_input(place, model, fault, fault.variant, write)
    else:
        classes = prepared.splits.classes
        assert fault.order is not None
        order = {name: int(output) for name, output in zip(classes, fault.order, strict=True)}
        own = {"fault": "classes", "outputs": order}
        sentence = _about_classes(model, fault, order)
    return record | figures | own | {"sentence": sentence}


def _nothing(probed: Probed) -> str:
    if not probed.images:
        return "its top-1 on val leaves no room for a fault"
    parts = [f"{probed.inputs} other inputs"] if probed.inputs else []
    parts += ["another order of its classes"] if probed.order else []
    tried = f"{' and '.join(parts)} tried on val: none is clearly better" if parts else ""
    few = "" if probed.order else "val has too few images to look for another order of its classes"
    return "; ".join(text for text in (tried, few) if text)


def _figures(fault: Fault) -> str:
    return f"On {fault.n:,} images of val it has {fault.given:.2f} top-1 as it is described, and {fault.top1:.2f} with"


def _about_input(place: int, model: Model, fault: Fault, variant: Variant, write: str | None) -> str:
    likewise = "".join(f", or likewise with {one.words}" for one in fault.likewise)
    if write is None:
        advice = _where_the_input_is_from(model)
    elif place == 0:
        advice = f"Write teacher.model='{write}'"
    else:
        advice = f"Write '{write}' in teacher.others"
    return (
        f"{model.spec}: it probably gets its images in another way than in its training. {_figures(fault)} "
        f"{variant.words}{likewise}. {advice}"
    )


def _where_the_input_is_from(model: Model) -> str:
    """Say what to check where no setting behind the name changes the input."""
    if model.spec.startswith("hf:"):
        return (
            "Check do_rescale, rescale_factor, image_mean, image_std and do_flip_channel_order in its "
            "preprocessor_config.json"
        )
    mean, std = (_numbers(values) for values in (model.input_spec.mean, model.input_spec.std))
    return (
        f"Check how it was trained: here it gets RGB images with mean {mean} and std {std} of pixels of 0 to 1. A "
        "function of yours (torch:module:function, docs/teachers.md) can give it others"
    )


def _renamed(model: Model, variant: Variant) -> str | None:
    """Return the name of a file with the settings of another input; None for a model that takes none."""
    if not isinstance(model, FixedModel):
        return None
    settings = {"channels": variant.channels} if variant.channels else {}
    if variant.normalisation:
        # settings have the means in the order of the file
        order = slice(None, None, -1 if turns_channels(model) else 1)
        scale = 255 if np.allclose(variant.std, 1 / 255) else 1
        settings["range"] = f"[0,{scale}]"
        settings["mean"], settings["std"] = (
            _numbers([scale * value for value in values[order]]) for values in (variant.mean, variant.std)
        )
    path, _, query = model.spec.partition("?")
    kept = [one for one in query.split("&") if one and one.partition("=")[0] not in settings]
    return f"{path}?{'&'.join([*kept, *(f'{key}={value}' for key, value in settings.items())])}"


def _numbers(values: Sequence[float]) -> str:
    """Return one number where all are the same, or a list of them."""
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"[{','.join(texts)}]"


def _about_classes(model: Model, fault: Fault, order: Mapping[str, int]) -> str:
    by_output = sorted(order, key=order.__getitem__)
    more = ", ..." if len(order) > SHOWN else ""
    if model.looks_up:
        names = model.class_ids or ()
        words = (
            f"the columns {', '.join(f'{names[order[name]]} for {name}' for name in by_output[:SHOWN])}{more}"
        )
    elif len(order) == model.num_classes:
        words = f"its outputs in the order {', '.join(by_output[:SHOWN])}{more}"
    else:
        words = f"the outputs {', '.join(f'{order[name]} for {name}' for name in by_output[:SHOWN])}{more}"
    return (
        f"{model.spec}: its outputs probably have another order than the list of its classes. {_figures(fault)} "
        f"{words}. {_where_the_classes_are_from(model)}; if its list is right, the labels of val are not"
    )


def _where_the_classes_are_from(model: Model) -> str:
    """Say where the classes of a model are listed."""
    if isinstance(model, FixedModel):
        return "List its classes in the order of its outputs, one a line, and write ?classes=FILE behind its name"
    if model.looks_up:
        return "Check the names of its columns"
    if model.spec.startswith("hf:"):
        return "Check id2label in its config.json"
    if isinstance(model, TimmModel) and "@" in model.spec:
        listed = Path(model.spec.partition("@")[2]).with_suffix(CLASS_LIST)
        return f"List its classes in the order of its outputs, one a line, in {listed}"
    return "Check the list of its classes"
