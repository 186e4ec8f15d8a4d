"""CLIP and SigLIP models of open_clip as teachers: ``zero-shot:NAME`` (extra ``clip``). Class names become the head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.data.classes import map_classes
from tutelage.data.input_spec import FILTERS, InputSpec
from tutelage.data.sources.names import class_name
from tutelage.models.kinds.names import listed_classes, split_settings, split_weights
from tutelage.models.source import Model, ready
from tutelage.models.timm import imagenet_classes
from tutelage.models.weights import ask_hub

SETTINGS = ("template", "classes")
TEMPLATE = "a photo of a {}."  # Radford et al. 2021, section 3.1.4
EXAMPLE = "zero-shot:ViT-B-32@laion2b_s34b_b79k"
CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}  # of open_clip, and ours
Embed = Callable[[Sequence[str]], Tensor]


class ZeroShotNetwork(nn.Module):
    """An image tower with a head of text features (Radford et al. 2021, section 3.1): images to scaled cosines.

    Args:
        visual: images (B, 3, H, W) to features (B, D).
        head: (C, D) text features of norm 1.
        scale: of the cosines: the exponential of the model's learnt logit scale.
        bias: is added to each logit; SigLIP's models have one (Zhai et al. 2023).
    """

    head: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, visual: nn.Module, head: Tensor, scale: float, bias: float) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) for images (B, 3, H, W)."""
        found = self.visual(images)
        features = found[0] if isinstance(found, tuple) else found  # CoCa's gives its tokens too
        with torch.autocast(
            images.device.type, enabled=False
        ):  # the scale, of about 100, enlarges a cosine's error
            return self.scale * F.linear(F.normalize(features.float(), dim=-1), self.head) + self.bias


@dataclass(frozen=True)
class ZeroShotModel(Model):
    """A model whose head is made of the names of the data's classes.

    Attributes:
        embed: words of C classes to their text features (C, D) of norm 1; None where the head is made.
    """

    embed: Embed | None = field(default=None, kw_only=True)

    def recognised(self, classes: Sequence[str]) -> Model:
        """The model with a head for the data's classes, unless ``?classes=FILE`` gave it one."""
        if self.embed is None or not classes:
            return self
        return self.named(classes, words_of(classes))

    def named(self, ids: Sequence[str], words: Sequence[str]) -> Model:
        """The model with a head for some classes.

        Args:
            ids: as the data names them.
            words: as the prompts name them.
        """
        assert isinstance(self.module, ZeroShotNetwork)
        assert self.embed is not None
        own = self.module
        network = ZeroShotNetwork(own.visual, self.embed(words), float(own.scale), float(own.bias))
        network.eval().requires_grad_(False)
        return replace(
            self,
            module=network,
            class_ids=tuple(ids),
            class_names=tuple(words),
            head_size=len(ids),
            embed=None,  # the text tower is not needed any more
        )

    def with_head(self, classes: Sequence[str] | int) -> Model:
        """Refuse: the head is made of class names, and is not fitted.

        Raises:
            TutelageError: always.
        """
        raise TutelageError(
            f"{self.spec}: its head is made of class names and cannot be fitted; leave teacher.fit out, and where it "
            "has ?classes=FILE, list all classes of the data in the file"
        )

    @torch.no_grad()
    def at(self, resolution: int) -> Model:
        """The model at another square resolution, where its image tower takes it.

        Raises:
            TutelageError: it takes images of one size alone.
        """
        assert isinstance(self.module, ZeroShotNetwork)
        spec = self.input_spec.at(resolution)
        try:
            self.module.visual(torch.zeros(1, 3, resolution, resolution))
        except Exception as error:  # towers of several libraries have errors of their own
            raise TutelageError(
                f"{self.spec}: cannot work at {resolution} px ({one_line(error)[:100]}); it is made for "
                f"{self.input_spec.height} px, so leave the resolution out"
            ) from None
        return replace(self, input_spec=spec)


def load(where: str, /, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    """Load a model of open_clip by ``NAME@TAG``, ``NAME@FILE``, ``NAME@none`` or the folder of one.

    Without ``?classes=FILE`` it has no head until `ZeroShotModel.recognised` sees the data's classes.

    Raises:
        TutelageError: open_clip is not installed or does not know the name, its weights cannot be had, or a setting
            cannot be used.
    """
    spec = f"zero-shot:{where}"
    try:
        import open_clip
    except ImportError:
        raise TutelageError(f"model {spec!r}: needs open_clip; run `pip install 'tutelage[clip]'`") from None
    path, settings = split_settings(where, SETTINGS)
    name, source = split_weights(path)
    templates = _templates(spec, settings.get("template", TEMPLATE))
    listed = listed_classes(Path(str(settings["classes"]))) if "classes" in settings else None
    folder = Path(name).is_dir()
    known = open_clip.list_models()
    if not folder and name not in known and not name.startswith(open_clip.factory.HF_HUB_PREFIX):
        near = nearest(name, known, 0.6)
        hint = (
            f"did you mean {near!r}?" if near else f"write one of open_clip.list_models(), such as {EXAMPLE}"
        )
        raise TutelageError(f"model {spec!r}: open_clip has no model {name!r}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    source = source or (tags[0] if tags else None)
    _check_tag(spec, source, tags, of_its_own=folder or name not in known)
    try:
        with _quiet():
            clip, tokenizer = _open(open_clip, f"local-dir:{name}" if folder else name, source)
    except Exception as error:  # open_clip, transformers, the hub's client and httpx have errors of their own
        raise TutelageError(
            f"model {spec!r}: cannot be loaded ({one_line(error)[:200]}); give NAME@FILE for weights on this machine, "
            f"or a name whose weights can be fetched, such as {EXAMPLE}"
        ) from None

    def embed(words: Sequence[str]) -> Tensor:
        features: Tensor = open_clip.build_zero_shot_classifier(clip, tokenizer, words, templates)
        return features.T.contiguous()

    bias = getattr(clip, "logit_bias", None)
    visual = ready(clip.visual)
    scale = float(clip.logit_scale.detach().exp())
    network = ZeroShotNetwork(visual, torch.zeros(0, 1), scale, 0.0 if bias is None else float(bias.detach()))
    model = ZeroShotModel(
        spec=spec,
        name=f"zero-shot:{name}",
        module=network.eval().requires_grad_(False),
        input_spec=_input_spec(clip.visual.preprocess_cfg),
        class_ids=None,
        class_names=None,
        origin="random" if source == "none" else f"open_clip's {name}{f', {source}' if source else ''}",
        pretrained=True,  # also random weights, which are for tests, are used as they are
        head_size=0,
        embed=embed,
    )
    if listed is None:
        return model
    ids, words = zip(*(_line(line) for line in listed), strict=True)
    return model.named(ids, [given or guess for given, guess in zip(words, words_of(ids), strict=True)])


def words_of(classes: Sequence[str]) -> list[str]:
    """Name classes in words, as a prompt needs them: ImageNet's by their WordNet ids, others by their names."""
    ids, names = imagenet_classes(1000)
    if ids and names and (place := map_classes(classes, ids)) is not None:
        return [names[index].split(",")[0] for index in place]
    return [" ".join(class_name(name).replace("_", " ").split()) for name in classes]


def _open(open_clip: Any, name: str, source: str | None) -> tuple[Any, Any]:
    """Return the network in eval mode and its tokenizer."""
    tag = open_clip.get_pretrained_cfg(name, source) if source not in {None, "none"} else {}
    hub = tag.get("hf_hub", "").strip("/") or name.partition("hf-hub:")[2]
    if hub and source != "none":
        ask_hub(hub)
    random = source == "none"
    clip = open_clip.create_model(
        name,
        pretrained=None if random else source,
        load_weights=not random,
        require_pretrained=not random,
        pretrained_text=not random,
        force_quick_gelu=bool(tag.get("quick_gelu")),  # the tags of OpenAI's weights need it
    )
    return clip.float().eval().requires_grad_(False), open_clip.get_tokenizer(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it nothing is logged: open_clip logs to the root logger, and its errors are told by `load`."""
    root, handler, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)  # without one, logging would add one that prints, and keep it
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _check_tag(spec: str, source: str | None, tags: Sequence[str], of_its_own: bool) -> None:
    """Refuse what follows the ``@`` where it is neither a tag nor a file, or where a folder has weights of its own."""
    if of_its_own and source not in {None, "none"}:
        raise TutelageError(f"model {spec!r}: the weights are with its configuration; leave @{source} out")
    if source in {None, "none", *tags} or Path(str(source)).is_file():
        return
    of_name = f"one of {', '.join(tags)}" if tags else "no published weights are known"
    raise TutelageError(
        f"model {spec!r}: {source!r} is no file; after the @ write a file, none, or a tag: {of_name}"
    )


def _templates(spec: str, value: object) -> list[str]:
    """Return the prompt templates: one, a list, or those of a file, one a line."""
    if isinstance(value, str) and "{" not in value:
        value = list(listed_classes(Path(value)))
    found = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    wrong = [one for one in found if one.count("{}") != 1 or {"{", "}"} & {*one.replace("{}", "")}]
    if wrong or not found:
        raise TutelageError(
            f"{spec}: template={wrong[0] if wrong else ''}: write {{}} once, where the class's name goes, such as "
            f"template={TEMPLATE}; or name a file with one on each line"
        )
    return found


def _line(text: str) -> tuple[str, str]:
    """A class as the data names it, and the words for it after a tab, or ``""``."""
    name, _, words = text.partition("\t")
    return name.strip(), words.strip()


def _input_spec(cfg: dict[str, Any]) -> InputSpec:
    """Return the input that the image tower's own transform makes."""
    size = cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    filter_ = cfg.get("interpolation", "bicubic")
    return InputSpec(
        int(height),
        int(width),
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
        crop_pct=1.0,
        interpolation=filter_ if filter_ in FILTERS else "bicubic",
        crop_mode=CROP_MODES[cfg.get("resize_mode") or "shortest"],
    )
