"""Targets in a run: live and cached agree, and neither changes the teacher."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from tests.helpers.fitted import fit
from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.input_spec import InputSpec
from tutelage.data.splits import make_splits
from tutelage.distillation.teacher import Teacher, cached_teacher
from tutelage.models.fold import for_inference
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import Prepared, prepare
from tutelage.pipeline.stages.train import train_student

CPU = torch.device("cpu")


def tiny_model(name: str, resolution: int = 64) -> Model:
    """With BatchNorm statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    model = load_model(f"{name}@none", num_classes=10).at(resolution)
    model.module.train()
    with torch.no_grad():
        for _ in range(3):
            model.module(torch.randn(8, 3, resolution, resolution) * 2 + 1)
    model.module.eval()
    return model


def logits_of(model: Model, precision: str) -> torch.Tensor:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return Teacher([model], CPU, precision).outputs([images]).logits  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_folding_and_casting_leave_answers_and_network_as_they_are(name: str) -> None:
    model = tiny_model(name)
    before = copy.deepcopy(model.module.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.module(images)
    assert torch.allclose(logits_of(model, "fp32"), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    rounded = logits_of(model, "bf16")
    assert rounded.dtype == torch.float32
    assert (rounded - wanted).abs().max() < 0.05 * wanted.abs().max()
    after = model.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_batchnorm_is_folded_where_it_follows_a_convolution() -> None:
    model = tiny_model("test_efficientnet")
    ready = for_inference(model.module, model.input_spec, CPU, "fp32")
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.module.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())


class Crossed(nn.Module):
    """The BatchNorm stands after the convolution, and is used before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x)).mean((2, 3))


class Curious(Crossed):
    """Looks at its BatchNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) * self.norm.eps


@pytest.mark.parametrize("kind", [Crossed, Curious])
def test_what_cannot_be_folded_is_left(kind: type[nn.Module]) -> None:
    spec = InputSpec(8, 8, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic", "center")
    module = kind().eval()
    nn.init.uniform_(module.norm.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(module.norm.running_var, 2, 3)  # type: ignore[arg-type]
    assert for_inference(module, spec, CPU, "fp32") is module


def prepared(tree: dict, root: Path, name: str) -> Prepared:
    recipe = parse_recipe(tree | {"name": name})
    return prepare(recipe, begin(recipe, root, "test"), Silent())


def trained(tree: dict, root: Path, name: str) -> Run:
    """A run as far as its student, with a teacher that knows the digits a little: one for all runs of a test."""
    weights = root / "teacher.safetensors"
    if not weights.exists():
        fit("test_resnet", make_splits(DataRecipe(train="digits", limit=240)).train, weights)
    tree["selection"] = {"interpolate": False, "soup": False}
    tree["teacher"] |= {"model": f"test_resnet@{weights}", "fit": "no"}
    found = prepared(tree, root, name)
    train_student(preflight(Fitted(found, fit_teachers(found), fit_head(found))))
    return found.run


def losses_of(run: Run) -> list[tuple[float, float]]:
    rows = [row for row in read_jsonl(run.metrics) if row["stage"] == "distill"]
    return [(row["loss"]["kl"], row["val"]["loss"]) for row in rows]


@pytest.mark.parametrize("views", [None, 1])
def test_cached_and_live_training_have_the_same_losses(tiny: dict, tmp_path: Path, views: int | None) -> None:
    tiny["targets"] = {"views": views, "directory": str(tmp_path / "shared")}
    live = trained(tiny, tmp_path, "live")
    tiny["targets"]["mode"] = "cached"
    cached = trained(tiny, tmp_path, "cached")
    for ours, theirs in zip(losses_of(cached), losses_of(live), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)
    kept = list((tmp_path / "shared" / "targets").glob("*/view-*.rows"))
    assert len(kept) == (views or 2)


def test_cached_pooled_features_train_as_those_of_a_live_teacher(tiny: dict, tmp_path: Path) -> None:
    tiny["targets"] = {"views": 1}
    tiny["loss"] = {"terms": [{"kl": {"temperature": 2}}, {"vkd": {"weight": 3}}]}
    live = trained(tiny, tmp_path, "live")
    tiny["targets"]["mode"] = "cached"
    cached = trained(tiny, tmp_path, "cached")
    ours, theirs = (
        [row["loss"]["vkd"] for row in read_jsonl(run.metrics) if row["stage"] == "distill"]
        for run in (cached, live)
    )
    assert ours == pytest.approx(theirs, rel=5e-3)
    assert ours[-1] < ours[0]
    assert losses_of(cached)[-1] == pytest.approx(losses_of(live)[-1], rel=5e-3)


def test_other_students_and_losses_share_the_cache_and_other_views_do_not(tiny: dict, tmp_path: Path) -> None:
    tiny["targets"] = {"mode": "cached", "directory": str(tmp_path / "shared")}

    def fill(name: str, temperature: float = 1.0, **changes: dict) -> int:
        found = prepared({key: value | changes.get(key, {}) for key, value in tiny.items()}, tmp_path, name)
        asked = 0

        def check() -> None:
            nonlocal asked
            asked += 1

        teacher = Teacher(found.teachers, CPU, temperature=temperature)
        context = found.context
        directory = context.cache_directory(found.recipe) / "targets"
        cached_teacher(
            teacher, found.splits.train, found.recipe, directory, context.loading, context.progress, check
        )
        return asked

    batches = 4  # of a view of 240 images
    assert fill("first", targets={"views": 1}) == batches
    assert fill("student", targets={"views": 1}, student={"model": "test_resnet@none"}) == 0
    assert fill("loss", targets={"views": 1}, loss={"name": "dist", "temperature": 1.0}) == 0
    assert fill("calibrated", temperature=0.8, targets={"views": 1}) == batches
    assert fill("calibrated-otherwise", temperature=0.9, targets={"views": 1}) == batches
    assert fill("more", train={"epochs": 2}) == batches  # only the second view is new
    assert fill("seed", targets={"views": 1}, train={"seed": 1}) == batches
    assert fill("view", targets={"views": 1}, view={"crop_scale": [0.6, 1.0]}) == batches
    assert fill("resolution", targets={"views": 1}, teacher={"resolution": 48}) == batches


def test_unlabelled_images_have_targets_too(tiny: dict, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(40):
        place = tmp_path / "more" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number * 6, 90, 250 - number * 6)).save(place)
    tiny["data"]["unlabelled"] = f"folder:{tmp_path / 'more'}"
    tiny["targets"] = {"views": 1}
    live = trained(tiny, tmp_path, "live")
    tiny["targets"]["mode"] = "cached"
    cached = trained(tiny, tmp_path, "cached")
    assert losses_of(cached)[0] == pytest.approx(losses_of(live)[0], rel=5e-3)
    assert list(cached.cache.glob("targets/*/view-0000.rows"))  # in the run, where no directory is named


def photographs(root: Path, count: int = 60) -> str:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        place = root / "ab"[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8) // 2 + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    return f"folder:{root}"


def test_images_are_decoded_once_and_a_resumed_run_does_as_before(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["data"] = {"train": photographs(tmp_path / "photos"), "workers": 0}
    tiny["targets"] = {"directory": str(tmp_path / "shared")}
    found = prepared(tiny, tmp_path, "run")
    decoded = read_json(found.run.splits)["decoded"]
    assert decoded["train"] == decoded["val"] >= 32
    assert decoded["unlabelled"] is None
    assert found.splits.train.image(0).size == (round(120 * decoded["train"] / 90), decoded["train"])
    assert found.splits.test.image(0).size == (120, 90)  # what reports is read from its files
    monkeypatch.setattr("tutelage.data.decoded._megabytes", lambda directory: 1e9)
    prepare(found.recipe, found.run, Silent())  # opened as it is, however full the place
    shutil.rmtree(tmp_path / "shared" / "images")
    with pytest.raises(TutelageError, match="the run began with decoded images"):
        prepare(found.recipe, found.run, Silent())


def test_copies_stay_below_the_limit_together(tiny: dict, tmp_path: Path) -> None:
    limit = 0.22
    tiny["data"] = {"train": photographs(tmp_path / "photos"), "workers": 0, "cache_mb": limit}
    tiny["targets"] = {"directory": str(tmp_path / "shared")}
    decoded = read_json(prepared(tiny, tmp_path, "run").run.splits)["decoded"]
    files = [f.stat().st_size for f in (tmp_path / "shared").rglob("*") if f.is_file()]
    assert 0 < sum(files) < limit * 1e6
    assert decoded["train"]
    assert decoded["val"] is None  # it would not fit beside
