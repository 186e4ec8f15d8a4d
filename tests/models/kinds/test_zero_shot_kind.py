"""Models of open_clip as teachers: tiny networks with random weights, from folders."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from tests.helpers.clip_files import MEAN, STD, write_clip
from tests.helpers.refusals import model_refusal as refusal
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.class_mapping import align_heads, own_classes
from tutelage.models.kinds.zero_shot import words_of
from tutelage.models.registry import load_model
from tutelage.models.source import Model

CLASSES = ["garden_tool", "Owl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


def logits_of_clip(folder: Path, images: Tensor, prompts: list[list[str]]) -> Tensor:
    """The logits by open_clip's own network; prompts of each class."""
    clip = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        of_class = [clip.encode_text(tokenizer(texts), normalize=True).mean(0) for texts in prompts]
        head = torch.stack([mean / mean.norm() for mean in of_class])
        logits: Tensor = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ head.T
        return logits if clip.logit_bias is None else logits + clip.logit_bias


def logits_of(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.module(images)
    return found


@pytest.mark.parametrize("bias", [{}, {"init_logit_bias": -3.0}])
def test_prompts_become_the_head(tmp_path: Path, bias: dict) -> None:
    folder = write_clip(tmp_path / "tiny", **bias)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = load_model(f"zero-shot:{folder}").recognised(CLASSES)
    assert (model.class_ids, model.class_names) == (tuple(CLASSES), ("garden tool", "Owl"))
    prompts = [["a photo of a garden tool."], ["a photo of a Owl."]]
    torch.testing.assert_close(logits_of(model, images), logits_of_clip(folder, images, prompts))

    (tmp_path / "prompts.txt").write_text("a photo of a {}.\na sketch of the {}\n")
    model = load_model(f"zero-shot:{folder}?template={tmp_path / 'prompts.txt'}").recognised(CLASSES)
    prompts = [
        [one[0], f"a sketch of the {words}"]
        for one, words in zip(prompts, ("garden tool", "Owl"), strict=True)
    ]
    torch.testing.assert_close(logits_of(model, images), logits_of_clip(folder, images, prompts))


def test_the_image_towers_own_input_is_used(folder: Path) -> None:
    model = load_model(f"zero-shot:{folder}")
    assert model.input_spec == InputSpec(32, 32, MEAN, STD, 1.0, "bilinear", "squash")
    assert model.at(32).input_spec == model.input_spec
    with pytest.raises(TutelageError, match="made for 32 px"):
        model.at(48)


def test_the_cosines_are_exact_under_autocast(folder: Path) -> None:
    """A scale of 100 would make an error of half a logit of bf16's rounding."""
    model = load_model(f"zero-shot:{folder}").recognised(CLASSES)
    model.module.scale.fill_(100.0)  # type: ignore[operator, union-attr]
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = torch.nn.functional.normalize(model.module.visual(images).float(), dim=-1)  # type: ignore[operator]
    expected = 100 * features @ model.module.head.T  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(model, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_classes_can_be_listed_with_their_words(folder: Path, tmp_path: Path) -> None:
    """Images without any label need it; the words are what the prompts have."""
    student = load_model("test_efficientnet@none")
    assert "it has no head" in _error(lambda: own_classes(load_model(f"zero-shot:{folder}")))
    (tmp_path / "classes.txt").write_text("Owl\ta barn owl\ngarden_tool\n")
    model = load_model(f"zero-shot:{folder}?classes={tmp_path / 'classes.txt'}&template=a drawing of {{}}")
    assert own_classes(model) == ("Owl", "garden_tool")
    assert model.class_names == ("a barn owl", "garden tool")
    teachers, _, mapping = align_heads([model], student, CLASSES)
    assert mapping.index.tolist() == [1, 0]
    assert model.spec not in mapping.new
    images = torch.zeros(1, 3, 32, 32)
    prompts = [["a drawing of a barn owl"], ["a drawing of garden tool"]]
    torch.testing.assert_close(logits_of(teachers[0], images), logits_of_clip(folder, images, prompts))
    with pytest.raises(TutelageError, match="list all classes of the data"):
        align_heads([model], student, [*CLASSES, "more"])


def _error(call: object) -> str:
    with pytest.raises(TutelageError) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_classes_of_imagenet_are_named_in_words() -> None:
    assert words_of(["n01440764", "n02123045"]) == ["tench", "tabby"]
    assert words_of(["n01440764", "garden_tool"]) == ["n01440764", "garden tool"]


def test_random_weights_and_what_is_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_model(f"zero-shot:{folder}@none").origin == "random"
    assert "did you mean 'convnext_base'?" in refusal("zero-shot:convnext_bas")
    assert "is no file; after the @ write a file, none, or a tag: one of openai" in refusal(
        "zero-shot:ViT-B-32@x"
    )
    assert "leave @openai out" in refusal(f"zero-shot:{folder}@openai")
    assert "write {} once" in refusal(f"zero-shot:{folder}?template=a {{}} of {{}}")
    assert "cannot be loaded" in refusal("zero-shot:RN50@yfcc15m")  # no test reaches a hub
    assert not caplog.records
