"""The cache of targets: as good as the live teacher, whole after a kill, and never a wrong one."""

import copy
import multiprocessing as mp
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import ViewRecipe, parse_recipe
from tutelage.data.loading import BadImages, Loading
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import ViewPolicy
from tutelage.distillation.losses import kl, kl_top_k
from tutelage.distillation.targets.cache import Cache
from tutelage.distillation.targets.fill import fill_from, identity_of_data
from tutelage.distillation.targets.layout import BATCH, Layout, TopK
from tutelage.distillation.teacher import Teacher
from tutelage.models.features import POOLED
from tutelage.models.registry import load_model
from tutelage.models.source import Model

POLICY = ViewPolicy(ViewRecipe(crop_scale=(0.7, 1.0)))
VIEWS = 2


class Killed(Exception):  # noqa: N818
    """Stands for a kill between two batches."""


@pytest.fixture(scope="module")
def subset() -> Subset:
    return whole(open_source("digits"))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return load_model("test_resnet@none", num_classes=10).at(32)


def cache_in(directory: Path, subset: Subset, model: Model, **layout: object) -> Cache:
    teacher = Teacher([model], torch.device("cpu"))
    identity = {"teachers": teacher.identity(), **identity_of_data(subset, POLICY, 0)}
    return Cache(directory, identity, Layout(len(subset), 10, **layout))  # type: ignore[arg-type]


def fill(cache: Cache, subset: Subset, model: Model, die_after: int | None = None, bad: int = 0) -> int:
    """Fill, and count the batches that the teacher was asked for."""
    teacher = Teacher([model], torch.device("cpu"), layers=[POOLED] if cache.layout.pooled else ())
    batches = 0

    def check() -> None:
        nonlocal batches
        batches += 1
        if batches == die_after:
            raise Killed

    fill_from(
        cache, teacher.answers, teacher.input_specs, subset, POLICY,
        seed=0, views=VIEWS, loading=Loading(0, BadImages(bad)), progress=Silent(), on_batch=check,
    )  # fmt: skip
    return batches


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, subset: Subset, model: Model) -> Cache:
    cache = cache_in(tmp_path_factory.mktemp("targets"), subset, model)
    fill(cache, subset, model)
    return cache


def content(cache: Cache) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in cache.place.iterdir() if p.suffix in {".rows", ".sums"}}


def live(subset: Subset, model: Model, view: int, positions: list[int]) -> torch.Tensor:
    from tutelage.data.loading import view_loader

    teacher = Teacher([model], torch.device("cpu"))
    batch = next(
        iter(
            view_loader(
                subset, POLICY, teacher.input_specs, [np.array(positions)], seed=0, view=view, workers=0
            )
        )
    )
    return teacher.logits(batch["images"])


def test_a_row_is_what_the_teacher_says_of_that_view(filled: Cache, subset: Subset, model: Model) -> None:
    positions = [1500, 3, 70, 1023, 1024]
    for view in range(VIEWS):
        kept = filled.read(view, np.array(positions))
        wanted = live(subset, model, view, positions)
        assert isinstance(kept, torch.Tensor)
        assert torch.allclose(kept, wanted, rtol=2e-3, atol=1e-3)
    assert not torch.equal(filled.read(0, np.array(positions)), filled.read(1, np.array(positions)))  # type: ignore[arg-type]


def test_a_filled_cache_asks_the_teacher_nothing(filled: Cache, subset: Subset, model: Model) -> None:
    assert fill(filled, subset, model) == 0


@pytest.mark.parametrize("batches", [1, 17, 30])
def test_a_killed_fill_goes_on_to_the_identical_cache(
    filled: Cache, subset: Subset, model: Model, tmp_path: Path, batches: int
) -> None:
    cache = cache_in(tmp_path, subset, model)
    with pytest.raises(Killed):
        fill(cache, subset, model, die_after=batches)
    whole_batches = -(-len(subset) // BATCH) * VIEWS
    done = batches // 16 * 16 if batches < 29 else 29  # blocks of 16 batches; a view has 29
    assert fill(cache, subset, model) <= whole_batches - done + 1
    assert content(cache) == content(filled)


def test_a_fill_that_is_killed_for_good_goes_on_too(
    filled: Cache, subset: Subset, model: Model, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path, subset, model)
    child = mp.get_context("fork").Process(target=_fill_in_a_process, args=(tmp_path, subset, model))
    child.start()
    while cache.missing(VIEWS) == len(subset) * VIEWS and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    assert 0 < cache.missing(VIEWS) < len(subset) * VIEWS
    fill(cache, subset, model)
    assert content(cache) == content(filled)


def _fill_in_a_process(directory: Path, subset: Subset, model: Model) -> None:
    torch.set_num_threads(1)
    fill(cache_in(directory, subset, model), subset, model)


def test_processes_fill_one_cache_together(
    filled: Cache, subset: Subset, model: Model, tmp_path: Path
) -> None:
    context = mp.get_context("fork")
    processes = [context.Process(target=_fill_in_a_process, args=(tmp_path, subset, model)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert content(cache_in(tmp_path, subset, model)) == content(filled)


def test_a_claimed_block_is_not_made_twice(subset: Subset, model: Model, tmp_path: Path) -> None:
    """Blocks that another process has locked are left to it; its death frees them."""
    cache = cache_in(tmp_path, subset, model)
    cache.prepare(VIEWS)
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # holds the first block of the first view until it is told to die
        import fcntl

        lock = os.open(cache.place / "fill.lock", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, 0)
        os.write(ours[1], b"x")
        os.read(theirs[0], 1)
        os._exit(0)
    os.read(ours[0], 1)
    asked: list[int] = []

    def make(view: int, batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for positions in batches:
            asked.append(int(positions[0]))
            if len(asked) == 13:  # the view's second block is done
                os.write(theirs[1], b"x")
            yield positions, np.zeros(len(positions), cache.layout.dtype)

    cache.fill(1, make)
    os.waitpid(child, 0)
    assert asked == [*range(1024, 1797, BATCH), *range(0, 1024, BATCH)]
    assert cache.missing(1) == 0


@pytest.mark.parametrize("suffix", [".rows", ".sums"])
def test_a_flipped_byte_is_found_and_named(
    filled: Cache, subset: Subset, model: Model, tmp_path: Path, suffix: str
) -> None:
    cache = cache_in(tmp_path, subset, model)
    cache.place.mkdir(parents=True)
    for name, data in content(filled).items():
        (cache.place / name).write_bytes(data)
    damaged = bytearray((cache.place / f"view-0001{suffix}").read_bytes())
    damaged[8 if suffix == ".sums" else 1100 * 20] ^= 4
    (cache.place / f"view-0001{suffix}").write_bytes(damaged)
    cache.read(1, np.array([0, 1023]))  # the other block is whole
    with pytest.raises(
        TutelageError, match=r"view-0001.rows: damaged, images 1024 to 1796 .* delete this file"
    ):
        cache.read(1, np.array([5, 1700]))
    (cache.place / "view-0001.rows").unlink()  # the mend that the message names
    fill(cache, subset, model)
    assert content(cache) == content(filled)


def test_whatever_decides_the_targets_is_in_the_key(subset: Subset, model: Model, tmp_path: Path) -> None:
    def place(
        subset: Subset = subset,
        model: Model = model,
        policy: ViewPolicy = POLICY,
        seed: int = 0,
        **kw: object,
    ) -> Path:
        teacher = Teacher([model], torch.device("cpu"))
        layout = Layout(len(subset), 10, **{"temperature": 2.0} | kw)  # type: ignore[arg-type]
        return Cache(
            tmp_path, {"t": teacher.identity(), **identity_of_data(subset, policy, seed)}, layout
        ).place

    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.module.parameters()))[0, 0, 0, 0] += 1e-6
    places = [
        place(),
        place(model=other),
        place(model=copy.deepcopy(model).at(48)),
        place(subset=Subset(subset.images, subset.indices[1:], subset.classes)),
        place(policy=ViewPolicy(ViewRecipe(crop_scale=(0.7, 0.9)))),
        place(seed=1),
        place(top_k=3),
        place(top_k=3, temperature=4.0),
        place(pooled=64),
    ]
    assert len(set(places)) == len(places)
    assert place() == place(temperature=4.0)  # full logits serve any temperature
    with pytest.raises(ValueError, match="has keys of the layout: temperature"):
        Cache(tmp_path, {"temperature": 2.0}, Layout(len(subset), 10))


def test_top_k_gives_the_loss_of_the_largest_classes(subset: Subset, model: Model, tmp_path: Path) -> None:
    cache = cache_in(tmp_path, subset, model, top_k=3, temperature=2.0)
    fill(cache, subset, model)
    positions = list(range(8))
    kept, full = cache.read(0, np.array(positions)), live(subset, model, 0, positions)
    assert isinstance(kept, TopK)
    log_p, classes = torch.log_softmax(full / 2, 1).topk(3)
    student = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    wanted = kl_top_k(student, classes, log_p, 2.0)
    assert kl_top_k(student, kept.indices, kept.log_probs, 2.0) == pytest.approx(wanted.item(), rel=2e-3)
    assert wanted <= kl(student, full, 2.0)
    assert cache.layout.dtype.itemsize == 3 * 4


@pytest.mark.parametrize("top_k", [None, 3])
def test_pooled_features_are_those_of_the_view(
    top_k: int | None, filled: Cache, subset: Subset, model: Model, tmp_path: Path
) -> None:
    width = model.module.get_classifier().in_features
    cache = cache_in(tmp_path, subset, model, top_k=top_k, temperature=2.0, pooled=width)
    fill(cache, subset, model)
    positions = np.array([1500, 3, 70, 1023, 1024])
    found = cache.outputs(1, positions)
    with torch.no_grad():
        logits = model.module.get_classifier()(found.features[POOLED])
    assert found.features[POOLED].shape == (5, width)
    assert torch.allclose(logits, filled.read(1, positions), rtol=5e-3, atol=5e-3)
    if top_k is None:
        assert torch.allclose(found.logits, filled.read(1, positions), rtol=2e-3, atol=1e-3)
    assert cache.layout.dtype.itemsize == (3 * 4 if top_k else 20) + 2 * width


def test_features_beyond_fp16_are_refused() -> None:
    with pytest.raises(TutelageError, match="pooled features are not finite in fp16"):
        Layout(4, 2, pooled=1).encode(torch.zeros(1, 2), torch.tensor([[1e6]]))


def test_an_image_that_cannot_be_decoded_has_no_target(subset: Subset, model: Model, tmp_path: Path) -> None:
    from tutelage.data.decode import UnreadableImage

    broken = copy.copy(subset.images)
    readable = broken.image

    def image(index: int) -> object:
        if index == 2 or index >= 1024:
            raise UnreadableImage(f"{index}", "cut short")
        return readable(index)

    broken.image = image  # type: ignore[method-assign, assignment]
    damaged = Subset(broken, subset.indices, subset.classes)
    cache = cache_in(tmp_path, damaged, model)
    fill(cache, damaged, model, bad=1000)
    assert cache.missing(VIEWS) == 0
    cache.read(0, np.array([1, 3, 1023]))
    for position in (2, 1500):
        with pytest.raises(TutelageError, match="could not be decoded when the targets were made"):
            cache.read(0, np.array([position]))


def test_a_full_disk_is_told_before(
    subset: Subset, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("tutelage.distillation.targets.cache.shutil.disk_usage", lambda place: usage)
    with pytest.raises(
        TutelageError, match=r"need 0 MB, the disk has 0 MB left; free some, lower targets.views"
    ):
        fill(cache_in(tmp_path, subset, model), subset, model)


def test_logits_beyond_fp16_are_refused() -> None:
    with pytest.raises(TutelageError, match="not finite in fp16"):
        Layout(4, 2).encode(torch.tensor([[1e6, 0.0]]))


def test_reading_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """40 MB of rows are read through a map: the process's own memory stays as it is."""
    layout = Layout(20_000, 1000)
    cache = Cache(tmp_path, {}, layout)
    cache.prepare(1)

    def make(view: int, batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for positions in batches:
            yield positions, np.full(len(positions), 1, layout.dtype)

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc to see a process's own memory apart from mapped files")
    cache.fill(1, make)
    cache.read(0, np.arange(64))
    before = own()
    for start in range(0, 20_000, 500):
        cache.read(0, np.arange(start, start + 64))
    assert own() - before < 8_000  # kB


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"view": {"mixup": 0.2}}, "set view.mixup and view.cutmix to 0, or targets.mode=live"),
        ({"view": {"cutmix": 1.0}}, "set view.mixup and view.cutmix to 0, or targets.mode=live"),
        (
            {"loss": {"name": "dist"}, "targets": {"mode": "cached", "top_k": 5}},
            "only the loss kl can .* not dist",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused_in_one_line(override: dict, message: str) -> None:
    with pytest.raises(TutelageError, match=message) as caught:
        parse_recipe({"targets": {"mode": "cached"}} | override)
    assert "\n" not in str(caught.value)
