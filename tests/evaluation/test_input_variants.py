"""A teacher whose input or whose order of classes is described wrongly is found by its accuracy; a right one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.sources.base import open_source
from tutelage.data.subset import Subset, whole
from tutelage.evaluation import input_variants
from tutelage.evaluation.input_variants import Probed, Variant, probe_description, variants_of
from tutelage.evaluation.predict import Predictions, predict_logits
from tutelage.models.kinds.transformers import LogitsOf
from tutelage.models.source import Model

COLOURS = {  # of the classes; of no two is one the other with red and blue swapped
    "brick": (200, 60, 40),
    "grass": (60, 170, 50),
    "sea": (30, 80, 210),
    "sand": (220, 200, 140),
    "plum": (120, 40, 110),
    "slate": (90, 110, 130),
}
NOISE = 45.0  # of a picture's colour, so that some are taken for another class
EACH = 30
SPEC = InputSpec(8, 8, crop_pct=1.0)
IMAGENET = (SPEC.mean, SPEC.std)
HALF = ((0.5,) * 3, (0.5,) * 3)
PLAIN = ((0.0,) * 3, (1.0,) * 3)
BYTES = ((0.0,) * 3, (1 / 255,) * 3)
CAFFE = (tuple(m / 255 for m in (103.939, 116.779, 123.68)), (1 / 255,) * 3)


class KnowsColours(nn.Module):
    """Names the class with the nearest colour, in images that are made as it was trained on them."""

    def __init__(
        self, trained: tuple[tuple[float, ...], ...], bgr: bool = False, order: list[int] | None = None
    ) -> None:
        super().__init__()
        mean, std = (torch.tensor(values) for values in trained)
        colours = torch.tensor(list(COLOURS.values())) / 255
        colours = ((colours.flip(1) if bgr else colours) - mean) / std
        self.colours = nn.Parameter(colours[order or list(range(len(COLOURS)))])

    def forward(self, images: Tensor) -> Tensor:
        return -torch.cdist(images.mean((2, 3)), self.colours)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Subset:
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(EACH):
            shade = np.clip(np.array(colour) + rng.normal(0, NOISE, 3), 0, 255).astype(np.uint8)
            Image.fromarray(np.broadcast_to(shade, (8, 8, 3)).copy()).save(root / name / f"{number}.png")
    return whole(open_source(f"folder:{root}"))


def model_of(module: nn.Module, described: tuple[tuple[float, ...], ...] = IMAGENET) -> Model:
    mean, std = described
    return Model.of(module, input_spec=replace(SPEC, mean=mean, std=std), name="own")


def probed(model: Model, pictures: Subset, index: np.ndarray | None = None) -> Probed:
    runtime = Runtime.start("cpu")
    if index is None:
        index = np.array([list(COLOURS).index(name) for name in pictures.classes])
    given = predict_logits(model.module, model.input_spec, pictures, runtime)
    return probe_description(model, pictures, index, given, runtime)


@pytest.mark.parametrize("trained", [IMAGENET, HALF, PLAIN, BYTES])
def test_a_teacher_that_is_described_rightly_is_not_accused(trained: tuple, pictures: Subset) -> None:
    found = probed(model_of(KnowsColours(trained), trained), pictures)
    assert (found.fault, found.inputs, found.order) == (None, 8, True)


@pytest.mark.parametrize(
    ("trained", "bgr", "described", "words"),
    [
        (IMAGENET, True, IMAGENET, "the channels in the order BGR"),
        (BYTES, False, IMAGENET, "pixels of 0 to 255 (mean 0, std 1)"),
        (BYTES, False, PLAIN, "pixels of 0 to 255 (mean 0, std 1)"),
        (PLAIN, False, BYTES, "pixels of 0 to 1 (mean 0, std 1)"),
        (HALF, False, PLAIN, "pixels of -1 to 1 (mean and std 0.5)"),
        (IMAGENET, False, HALF, "ImageNet's mean and std"),
        (BYTES, True, IMAGENET, "pixels of 0 to 255 (mean 0, std 1) and the channels in the order BGR"),
        (CAFFE, True, IMAGENET, "pixels of 0 to 255 less ImageNet's mean and the channels in the order BGR"),
    ],
)
def test_a_wrong_input_is_named(
    trained: tuple, bgr: bool, described: tuple, words: str, pictures: Subset
) -> None:
    fault = probed(model_of(KnowsColours(trained, bgr), described), pictures).fault
    assert fault is not None
    assert fault.variant is not None
    assert fault.variant.words == words
    assert fault.top1 == pytest.approx(75, abs=2)  # what the network has on images as it was trained on
    assert (fault.given < 62, fault.n, fault.p < 0.01) == (True, 180, True)


class TurnsChannels(LogitsOf):
    """Gives a network its channels in the other order, as a file that is described with ``channels=BGR`` does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, bgr=True)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images.flip(1))
        return found


def test_channels_that_were_turned_wrongly_are_turned_back(pictures: Subset) -> None:
    fault = probed(model_of(TurnsChannels(KnowsColours(IMAGENET))), pictures).fault
    assert fault is not None
    assert fault.variant is not None
    assert fault.variant.words == "the channels in the order RGB"


@pytest.mark.parametrize("described", [IMAGENET, BYTES])
def test_a_bgr_file_of_caffe_is_tried_with_the_means_of_its_channels(
    described: tuple, pictures: Subset
) -> None:
    """Its module gets RGB: mean and std are in the order of this."""
    fault = probed(model_of(TurnsChannels(KnowsColours(CAFFE, bgr=True)), described), pictures).fault
    assert fault is not None
    assert fault.variant is not None
    assert fault.variant.words == "pixels of 0 to 255 less ImageNet's mean"


# --- the order of the classes


def test_a_shuffled_order_is_named_with_the_output_of_each_class(pictures: Subset) -> None:
    order = [3, 5, 0, 1, 2, 4]
    fault = probed(model_of(KnowsColours(IMAGENET, order=order)), pictures).fault
    assert fault is not None
    assert fault.variant is None
    assert fault.order is not None
    names = list(COLOURS)
    found = {name: int(output) for name, output in zip(pictures.classes, fault.order, strict=True)}
    assert found == {names[place]: output for output, place in enumerate(order)}
    assert (fault.top1 > 65, fault.given < 20, fault.n) == (True, True, 90)


def test_two_classes_in_each_others_place_are_named(pictures: Subset) -> None:
    fault = probed(model_of(KnowsColours(IMAGENET, order=[0, 1, 4, 3, 2, 5])), pictures).fault
    assert fault is not None
    assert fault.order is not None


def test_a_head_with_more_classes_than_the_data_has(pictures: Subset) -> None:
    """Of its outputs, two that no class of the data has are the best for two classes."""
    model = model_of(nn.Sequential(KnowsColours(IMAGENET), nn.ConstantPad1d((2, 0), -9.0)))
    index = np.array([list(COLOURS).index(name) for name in pictures.classes])
    assert probed(model, pictures, index + 2).fault is None
    fault = probed(model, pictures, index).fault
    assert fault is not None
    assert fault.order is not None
    assert fault.order.tolist() == (index + 2).tolist()


def test_classes_that_are_mixed_up_are_no_wrong_order(pictures: Subset) -> None:
    """A teacher answers two thirds of two classes with each other: another order is better, and is not the fault."""
    index = np.arange(len(COLOURS))
    rng = np.random.default_rng(0)
    answers = np.where(rng.random(len(pictures)) < 0.1, rng.integers(0, 6, len(pictures)), pictures.labels)
    mixed = (pictures.labels < 2) & (rng.random(len(pictures)) < 0.66)
    answers[mixed] = 1 - pictures.labels[mixed]
    trials = input_variants._reordered(answers, pictures.labels, index)
    assert trials == []
    swapped = np.where(answers < 2, 1 - answers, answers)
    assert (swapped == pictures.labels).mean() - (answers == pictures.labels).mean() > 0.05


def test_with_too_few_images_for_its_classes_no_order_is_looked_for(pictures: Subset) -> None:
    model = model_of(KnowsColours(IMAGENET, order=[3, 5, 0, 1, 2, 4]))
    few = replace(pictures, indices=pictures.indices[::6])
    assert (len(few), probed(model, few)) == (30, Probed(8, 30, order=False, fault=None))
    enough = replace(pictures, indices=pictures.indices[::5])
    assert probed(model, enough).order


# --- no accusation without a reason


def test_teachers_that_guess_are_not_accused(pictures: Subset) -> None:
    """Nothing is better than their answers, whatever is tried."""

    class Guesses(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.weight = nn.Parameter(torch.randn(6, 192, generator=generator))

        def forward(self, images: Tensor) -> Tensor:
            return (images.flatten(1) @ self.weight.T).sin()

    # labels that have nothing to do with the pictures
    shuffled = replace(pictures, relabel=None)
    labels = np.random.default_rng(0).permutation(pictures.labels)
    shuffled.__dict__["labels"] = labels
    assert [seed for seed in range(25) if probed(model_of(Guesses(seed)), shuffled).fault] == []


def test_a_teacher_without_room_for_a_fault_is_not_tried(pictures: Subset) -> None:
    class Right(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = iter([0])

        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("tried")

    model = Model("own", "own", Right(), SPEC, None, None, "", pretrained=True)
    logits = torch.eye(6)[torch.from_numpy(pictures.labels)]
    given = Predictions(logits, torch.arange(len(pictures)))
    found = probe_description(model, pictures, np.arange(6), given, Runtime.start("cpu"))
    assert found == Probed(0, 0, order=False, fault=None)


def test_images_without_a_label_do_not_count(pictures: Subset) -> None:
    half = replace(pictures)
    half.__dict__["labels"] = np.where(np.arange(len(pictures)) % 2, -1, pictures.labels)
    fault = probed(model_of(KnowsColours(IMAGENET, bgr=True)), half).fault
    assert fault is not None
    assert fault.n == 90


def test_an_input_of_another_kind_has_no_variants() -> None:
    class Names(InputSpec):
        """Not pixels."""

    model = model_of(KnowsColours(IMAGENET))
    assert variants_of(replace(model, input_spec=Names(8, 8))) == []
    assert len(variants_of(model)) == 8


def trial(right: int, given: int = 10, *, order: bool = False) -> input_variants._Trial:
    """Of 100 images, the first ones are right."""
    labels = np.ones(100, int)
    new, before = ((np.arange(100) < n).astype(int) for n in (right, given))
    if order:
        return input_variants._Trial.of(new, before, labels, order=np.arange(2))
    return input_variants._Trial.of(new, before, labels, variant=Variant("other", *PLAIN, ""))


def test_an_input_goes_before_an_order_that_is_hardly_better() -> None:
    for of_order, expected in ((84, True), (90, False)):
        fault = input_variants._clearest([trial(of_order, order=True), trial(80)], tests=9, floor=0)
        assert fault is not None
        assert (fault.variant is not None) == expected


def test_always_naming_one_class_is_no_sign_of_a_fault() -> None:
    """A teacher whose classes are shuffled has less; the floor is a little above the share of the largest class."""
    assert input_variants._clearest([trial(30)], tests=9, floor=35) is None
    assert input_variants._clearest([trial(40)], tests=9, floor=35) is not None


@pytest.mark.parametrize(("gained", "is_found"), [(4, False), (16, True)])
def test_a_small_gain_is_no_fault(gained: int, is_found: bool) -> None:
    """Of 400 images, so that both are significant."""
    labels, given = np.ones(400, int), (np.arange(400) < 200).astype(int)
    new = (np.arange(400) < 200 + 4 * gained).astype(int)
    one = input_variants._Trial.of(new, given, labels, variant=Variant("other", *PLAIN, ""))
    assert one.pair.mcnemar_p < 1e-4
    assert (input_variants._clearest([one], tests=9, floor=0) is not None) == is_found


def test_holm_corrects_for_all_that_was_tried() -> None:
    """The smallest p times the number of tests, the next times one less, and never below the one before."""
    assert input_variants._holm([0.04, 0.001, 0.0015, 0.9], tests=9) == pytest.approx(
        [0.28, 0.009, 0.012, 1.0]
    )
    assert input_variants._holm([], tests=9) == []
