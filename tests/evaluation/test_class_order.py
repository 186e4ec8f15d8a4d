"""Heads that do not name their classes: the order of the classes is found, ImageNet is recognised by its classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.sources.base import open_source
from tutelage.data.splits import whole
from tutelage.evaluation.class_order import name_classes
from tutelage.evaluation.compare import compare
from tutelage.models.class_mapping import align_heads
from tutelage.models.registry import given, load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.prepare import prepare

SPEC = InputSpec(32, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
EACH = 8  # images of a class


class Knowing(nn.Module):
    """Knows the grey of each class, in the order of its head."""

    def __init__(self, greys: list[int]) -> None:
        super().__init__()
        self.greys = nn.Parameter(torch.tensor(greys) / 255)

    def forward(self, images: Tensor) -> Tensor:
        return -100 * (images.mean((1, 2, 3))[:, None] - self.greys).abs()


def greys(root: Path, classes: list[str]) -> str:
    """A folder of even grey pictures; the grey of a class is its place in the list."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(EACH):
            grey = np.full((32, 32, 3), 10 + 9 * place, np.uint8)
            grey[0, 0] = number  # each file another
            Image.fromarray(grey).save(root / name / f"{number}.png")
    return f"folder:{root}"


def knowing(classes: list[str], order: list[str]) -> Model:
    return Model.of(Knowing([10 + 9 * classes.index(name) for name in order]), input_spec=SPEC, name="own")


NUMBERS = [str(number) for number in range(1, 13)]
ORDERS = {  # the classes, and the order in which a checkpoint has them
    "numbers": (NUMBERS, NUMBERS),
    "numbers in names": (
        [f"class{number}" for number in (1, 2, 10, 20, 100)],
        [f"class{number}" for number in (1, 2, 10, 20, 100)],
    ),
    "padded in part": (["007", "12", "100", "9"], ["007", "9", "12", "100"]),
    "capitals": (["Zebra", "ant", "Bee"], ["ant", "Bee", "Zebra"]),
    "text": (NUMBERS, sorted(NUMBERS)),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_the_order_of_the_head_is_found_and_told(kind: str, tmp_path: Path) -> None:
    classes, order = ORDERS[kind]
    data, model = greys(tmp_path / "data", classes), knowing(classes, order)
    table = compare([model], data=data, batch_size=1)
    assert table.rows[0].top1 == 100
    (note,) = [note for note in table.notes if "does not name its classes; top-1 on" in note]
    name = "the data's order" if order == sorted(classes) else "timm's natural order"
    assert f"100.00 in {name}" in note
    assert f"taken: {name} ({', '.join(order[:3])}, ...)" in note
    assert ".classes.txt" in note


def test_where_both_orders_are_one_nothing_is_tried(tmp_path: Path) -> None:
    classes = [f"{number:02d}" for number in range(1, 12)]
    subset = whole(open_source(greys(tmp_path / "data", classes)))
    model = knowing(classes, classes)
    assert name_classes(model, subset, Runtime.start("cpu")) == (model, "")
    named = replace(knowing(NUMBERS, sorted(NUMBERS)), class_ids=tuple(sorted(NUMBERS)))
    numbered = whole(open_source(greys(tmp_path / "numbers", NUMBERS)))
    assert name_classes(named, numbered, Runtime.start("cpu")) == (named, "")


def test_names_that_timm_could_not_sort_have_the_datas_order(tmp_path: Path) -> None:
    classes = ["m", "m\u00b2", "m\u00b3"]
    table = compare([knowing(classes, classes)], data=greys(tmp_path / "data", classes), batch_size=1)
    assert table.rows[0].top1 == 100


@pytest.mark.parametrize("order", [NUMBERS, sorted(NUMBERS)], ids=["natural", "text"])
def test_a_run_takes_the_order_that_is_right_on_val(tiny: dict, tmp_path: Path, order: list[str]) -> None:
    tiny["data"] = {"train": greys(tmp_path / "data", NUMBERS), "workers": 0}
    tiny["teacher"] = {"model": "object:own", "resolution": 32}
    recipe = parse_recipe(tiny | {"name": "run"})
    said: list[str] = []
    progress = Silent()
    progress.say = said.append  # type: ignore[method-assign]
    with given({"own": knowing(NUMBERS, order)}):
        prepared = prepare(recipe, begin(recipe, tmp_path, "test"), progress)
    mapping = prepared.class_mapping
    assert [mapping.class_ids[place] for place in mapping.index] == list(prepared.splits.classes)
    assert list(mapping.class_ids) == order
    assert not mapping.new - {"test_efficientnet@none"}  # the teacher's head is kept
    assert sum("does not name its classes" in line for line in said) == 1


# --- a head with as many outputs as ImageNet has classes


def own(path: Path, size: int) -> Model:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=size).state_dict(), path)
    return load_model(f"test_resnet@{path}")


@pytest.mark.parametrize("size", [999, 1000, 11221, 11821, 21841, 21842, 21843])
def test_an_own_head_is_kept_whatever_its_size(size: int, tmp_path: Path) -> None:
    model = own(tmp_path / "own.pth", size)
    classes = [f"sku{number:05d}" for number in range(size)]
    (teacher,), student, mapping = align_heads([model], load_model("test_efficientnet@none"), classes)
    assert torch.equal(teacher.module.fc.weight, model.module.fc.weight)
    assert mapping.new == {"test_efficientnet@none"}
    assert mapping.class_ids == tuple(classes)
    assert (model.class_ids, model.class_names) == (None, None)
    assert student.num_classes == size


def test_imagenet_is_recognised_by_its_classes(tmp_path: Path) -> None:
    model = own(tmp_path / "own.pth", 1000)
    classes = ["n01443537", "n01629819"]
    (teacher,), _, mapping = align_heads([model], load_model("test_efficientnet@none"), classes)
    assert teacher.class_names is not None
    assert teacher.class_names[0].startswith("goldfish")
    assert (mapping.class_ids, mapping.index.tolist(), mapping.cut) == (tuple(classes), [0, 1], {model.spec})
    (teacher,), _, mapping = align_heads(
        [model], load_model("test_efficientnet@none"), classes, all_classes=True
    )
    assert teacher.class_names is not None
    assert teacher.class_names[1].startswith("goldfish")
    assert (len(mapping.class_ids), mapping.index[0]) == (1000, 1)
    other = model.recognised(["n01443537", "sku00001"])
    assert (other.class_ids, other.with_head(3).presumed) == (None, None)


# --- a list of the classes beside a checkpoint


def test_a_list_of_classes_settles_the_order(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "own.pth")
    (tmp_path / "own.classes.txt").write_text("zebra\r\nBär\nant\n\n", encoding="utf-8-sig")
    model = load_model(f"test_resnet@{tmp_path / 'own.pth'}")
    assert model.class_ids == ("zebra", "Bär", "ant")
    _, _, mapping = align_heads([model], load_model("test_efficientnet@none"), ["Bär", "ant", "zebra"])
    assert (mapping.class_ids, list(mapping.index)) == (("zebra", "Bär", "ant"), [1, 2, 0])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\nb\n", r"own\.classes\.txt: lists 2 classes, 2 of them different, but the head of .* has 3"),
        (b"a\nb\na\n", "lists 3 classes, 2 of them different"),
        (b"", "lists 0 classes"),
        (b"\xff\xfe\n", r"own\.classes\.txt: cannot be read"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(content: bytes, line: str, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "own.pth")
    (tmp_path / "own.classes.txt").write_bytes(content)
    with pytest.raises(TutelageError, match=line):
        load_model(f"test_resnet@{tmp_path / 'own.pth'}")
