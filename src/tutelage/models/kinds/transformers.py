"""Image classifiers of Hugging Face transformers: ``hf:org/name`` or ``hf:FOLDER`` (extra ``transformers``)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.input_spec import FILTERS, InputSpec
from tutelage.models.kinds.names import split_weights
from tutelage.models.source import Model
from tutelage.models.timm import imagenet_classes
from tutelage.models.weights import COUNTER, ask_hub

_LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)


class LogitsOf(nn.Module):
    """A classifier of transformers as a module that returns its logits.

    Args:
        network: a ``...ForImageClassification``.
        bgr: its processor turns the channels round.
    """

    def __init__(self, network: nn.Module, bgr: bool) -> None:
        super().__init__()
        self.network, self.bgr = network, bgr

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) for images (B, 3, H, W)."""
        logits: Tensor = self.network(pixel_values=images.flip(1) if self.bgr else images).logits
        return logits


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load an image classifier with its own processor and classes. No code of the repository is run.

    Raises:
        TutelageError: transformers is not installed, the hub cannot be reached, or it is no image classifier.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise TutelageError(
            f"model 'hf:{where}': needs transformers; run `pip install 'tutelage[transformers]'`"
        ) from None
    name, source = split_weights(where)
    random_head = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if not Path(name).is_dir():
            ask_hub(name)
        config = AutoConfig.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name).to_dict()
        if source is None:
            network, loaded = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
            random_head = any(
                not key.endswith(COUNTER) for key in loaded["missing_keys"]
            )  # of a backbone alone, such as DINOv2's
        else:
            if num_classes is not None and source == "none":
                config.num_labels = num_classes
            network = AutoModelForImageClassification.from_config(config)
    except Exception as error:  # transformers, the hub's client and httpx have errors of their own
        raise TutelageError(
            f"model 'hf:{where}': cannot be loaded from {name} ({one_line(error)[:200]}); give the folder of an image "
            "classifier that save_pretrained wrote, or the name of one on the hub, such as hf:microsoft/resnet-50"
        ) from None
    named = [str(network.config.id2label[number]) for number in range(network.config.num_labels)]
    known = not random_head and not all(re.fullmatch(r"LABEL_\d+", label) for label in named)
    model = Model.of(
        LogitsOf(network, bool(processor.get("do_flip_channel_order"))),
        input_spec=_input_spec(where, processor, network.config),
        class_ids=named if known and len(set(named)) == len(named) else None,
        class_names=named if known else None,
        name=f"hf:{name}",
        origin=("hub " if not Path(name).is_dir() else "folder ") + name if source is None else "random",
        pretrained=source is None,
    )
    ids, names = imagenet_classes(len(named))
    if ids and not random_head and len(named) == 1000 and (named[0].lower().startswith("tench") or not known):
        # the hub's names of these classes are in words; the data of ImageNet has WordNet's ids
        model = replace(model, class_ids=ids, class_names=names)
    model = replace(model, licence=_licence(name), random_head=random_head)
    if source not in {None, "none"}:
        model = model.reload(Path(str(source)))
    return model if num_classes in {None, model.num_classes} else model.with_head(num_classes or 0)


def _input_spec(where: str, processor: dict[str, Any], config: Any) -> InputSpec:
    """Return the input that a processor makes."""
    size = processor.get("size") or {}
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    short = size.get("shortest_edge")
    height, width = (
        (crop["height"], crop["width"]) if crop else (size.get("height") or short, size.get("width") or short)
    )
    if not height or not width:
        height = width = getattr(config, "image_size", None) or 224
    share, mode = 1.0, "center"
    if crop and short:
        share = crop["height"] / short
    elif crop and size.get("height"):
        share, mode = crop["height"] / size["height"], "squash"
    elif processor.get("crop_pct") and short:  # ConvNeXt's: resized to short / crop_pct, unless it is large
        share = processor["crop_pct"] if short < 384 else 1.0
        mode = "center" if short < 384 else "squash"
    elif size.get("height"):
        mode = "squash"  # these processors do not keep the ratio of the sides
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize") or mean is None or std is None:
        mean, std = [0.0] * 3, [1.0] * 3
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    resample = processor.get("resample", Image.Resampling.BILINEAR)
    filters = {int(value): key for key, value in FILTERS.items()}
    order = slice(None, None, -1 if processor.get("do_flip_channel_order") else 1)
    return InputSpec(
        int(height),
        int(width),
        mean=tuple(float(m) / factor for m in mean)[order],
        std=tuple(float(s) / factor for s in std)[order],
        crop_pct=share,
        interpolation=filters.get(int(resample), "bilinear"),
        crop_mode=mode,
    )


def _licence(name: str) -> str | None:
    """Return the licence that a model card on this machine names."""
    card: str | Path | Any = Path(name) / "README.md"
    if not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache

        card = try_to_load_from_cache(name, "README.md")
    if not isinstance(card, (str, Path)) or not Path(card).is_file():
        return None
    head = Path(card).read_text(encoding="utf-8", errors="replace").split("---")
    found = _LICENCE.search(head[1]) if len(head) > 2 else None
    return found[1] if found else None
