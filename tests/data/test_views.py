"""A view is a pure function of (image, seed), and the same crop at every resolution."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.core.recipe import ViewRecipe
from tutelage.data.input_spec import InputSpec, eval_pixels
from tutelage.data.sources.base import open_source
from tutelage.data.views import View, ViewPolicy, eval_view, view_seed

EVERYTHING = ViewRecipe(
    crop_scale=(0.2, 1.0), flip=0.5, rotation=30, blur=0.5, greyscale=0.3, colour=0.4, cutout=0.5
)
SMALL, LARGE = InputSpec(48, 48), InputSpec(144, 144, interpolation="bilinear")


def ramp(width: int = 200, height: int = 160) -> Image.Image:
    """Red says where across, green where down, blue nothing."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).round().astype(np.uint8))


def blocks(pixels: np.ndarray, size: int) -> np.ndarray:
    """Means over equal blocks: a large picture as a small one."""
    step = len(pixels) // size
    return pixels.reshape(size, step, size, step, 3).mean((1, 3))


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    scale=st.tuples(st.floats(0.01, 0.999), st.floats(0.01, 1)).map(lambda s: tuple(sorted(s))),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda r: tuple(sorted(r))),
)
def test_boxes_lie_inside_and_have_the_area_and_ratio_asked_for(seed, size, scale, ratio):
    left, top, right, bottom = ViewPolicy(ViewRecipe(crop_scale=scale, crop_ratio=ratio)).draw(size, seed).box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    aspect = size[0] / size[1]
    area, pixel_ratio = (right - left) * (bottom - top), (right - left) / (bottom - top) * aspect
    assert ratio[0] * (1 - 1e-9) <= pixel_ratio <= ratio[1] * (1 + 1e-9)
    # of the drawn area where such a crop fits inside, else the largest that does
    fits = min(1.0, ratio[1] / aspect, aspect / ratio[0])
    assert min(scale[0], fits) * (1 - 1e-9) <= area <= min(scale[1], fits) * (1 + 1e-9)


@pytest.mark.parametrize(("size", "largest"), [((1600, 900), 0.75), ((900, 1600), 0.75), ((400, 300), 1.0)])
def test_the_area_gives_way_no_further_than_it_must(size, largest):
    """Of a 16:9 photograph a crop of 4:3 covers 75%: 38% of the default areas are larger, and only these change."""
    views = [ViewPolicy(ViewRecipe()).draw(size, seed).box for seed in range(4000)]
    areas = np.array([(right - left) * (bottom - top) for left, top, right, bottom in views])
    wanted = np.random.default_rng(0).uniform(0.35, 1, 100_000)
    assert areas.mean() == pytest.approx(np.minimum(wanted, largest).mean(), abs=0.01)
    assert np.mean(areas > largest - 1e-6) == pytest.approx(np.mean(wanted >= largest), abs=0.03)
    whole = np.array(views)[areas > largest - 1e-6]
    if len(whole):  # the largest crops lie anywhere along the long side
        assert np.ptp(whole[:, :2], axis=0).max() > 0.24


def test_views_of_square_images_are_what_they_were():
    """Computed before crops of other images were made to keep their ratio."""
    digest = hashlib.sha256()
    recipes = (ViewRecipe(), ViewRecipe(crop_scale=(0.08, 1.0)), ViewRecipe(crop_ratio=(1.0, 1.0)))
    for seed in range(2000):
        for recipe in recipes:
            digest.update(repr(ViewPolicy(recipe).draw((64, 64), seed).box).encode())
    assert digest.hexdigest() == "c681e97500f7a30117d5e6ff8125ecbccf0bb4c09f4d56d7cccfa50a555f30cb"
    box = ViewPolicy(ViewRecipe()).draw((64, 64), 0).box
    assert box == (0.06891530822753376, 0.04084823698441772, 0.9332747028585388, 0.9616452133458708)


@pytest.mark.parametrize("seed", range(12))
def test_one_view_at_two_resolutions_is_the_same_crop(seed):
    recipe = EVERYTHING.model_copy(update={"greyscale": 0.0, "colour": 0.0})
    view = ViewPolicy(recipe).draw((200, 160), seed)
    small = view.pixels(ramp(), SMALL).astype(float)
    large = blocks(view.pixels(ramp(), LARGE).astype(float), 48)
    apart = np.abs(small - large)
    assert apart.mean() < 1.5
    assert np.quantile(apart, 0.97) < 6  # what is left lies along the cutout's edge


@pytest.mark.parametrize("seed", range(8))
def test_the_crop_shows_the_box_and_nothing_else(seed):
    view = ViewPolicy(ViewRecipe(flip=0.5)).draw((200, 160), seed)
    for spec in (SMALL, LARGE):
        pixels = view.pixels(ramp(), spec).astype(float)
        across, down = pixels[..., 0].mean(0) / 255, pixels[..., 1].mean(1) / 255
        if view.flip:
            across = across[::-1]
        half_x, half_y = (
            (view.box[2] - view.box[0]) / spec.width / 2,
            (view.box[3] - view.box[1]) / spec.height / 2,
        )
        assert across[0] == pytest.approx(view.box[0] + half_x, abs=0.01)
        assert across[-1] == pytest.approx(view.box[2] - half_x, abs=0.01)
        assert down[0] == pytest.approx(view.box[1] + half_y, abs=0.01)
        assert down[-1] == pytest.approx(view.box[3] - half_y, abs=0.01)


def test_the_same_seed_is_the_same_view_to_the_bit_and_another_seed_another():
    image = open_source("digits").image(5)
    policy, same = ViewPolicy(EVERYTHING), ViewPolicy(EVERYTHING)
    first = policy.draw(image.size, 7).render(image, SMALL)
    policy.draw(image.size, 8)  # what was drawn in between does not matter
    assert torch.equal(first, same.draw(image.size, 7).render(image, SMALL))
    assert not torch.equal(first, policy.draw(image.size, 8).render(image, SMALL))


def test_rendering_leaves_the_image_alone():
    image = open_source("digits").image(5)
    before = image.tobytes()
    for seed in range(20):
        ViewPolicy(EVERYTHING).draw(image.size, seed).render(image, SMALL)
    assert image.tobytes() == before


def test_a_view_of_this_version_is_a_view_of_the_next():
    """Cached targets and resumed runs rest on it: a change here needs a new name for the hash."""
    assert view_seed(0, "train/cat/1.jpg", 3) == 9169752370958083563
    view = ViewPolicy(EVERYTHING).draw((64, 48), 12345)
    assert [round(v, 6) for v in view.box] == [0.069514, 0.023091, 0.940417, 0.990941]


def test_view_seeds_differ_by_run_image_and_index():
    seeds = {
        view_seed(run, name, index) for run in range(4) for name in ("a", "b", "1|a") for index in range(50)
    }
    assert len(seeds) == 4 * 3 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_switching_one_augmentation_leaves_the_others():
    for seed in range(50):
        full = ViewPolicy(EVERYTHING).draw((64, 64), seed)
        for off in (
            {"flip": 0},
            {"rotation": 0},
            {"blur": 0},
            {"greyscale": 0},
            {"colour": 0},
            {"cutout": 0},
        ):
            changed = ViewPolicy(EVERYTHING.model_copy(update=off)).draw((64, 64), seed)
            kept = {"box", "flip", "angle", "blur", "greyscale", "colour", "cutout"} - {*off, "angle"}
            assert all(getattr(changed, name) == getattr(full, name) for name in kept)
            if "rotation" not in off:
                assert changed.angle == full.angle


def test_frequencies_and_ranges_are_the_recipes():
    views = [ViewPolicy(EVERYTHING).draw((64, 64), view_seed(0, "x", i)) for i in range(3000)]
    assert np.mean([v.flip for v in views]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([v.blur > 0 for v in views]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([v.greyscale for v in views]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([v.cutout is not None for v in views]) == pytest.approx(0.5, abs=0.04)
    angles = np.array([v.angle for v in views])
    assert np.abs(angles).max() <= 30
    assert np.abs(angles.mean()) < 1.5
    assert angles.std() == pytest.approx(30 / math.sqrt(3), abs=1)
    areas = np.array([(v.box[2] - v.box[0]) * (v.box[3] - v.box[1]) for v in views])
    assert areas.mean() == pytest.approx(0.6, abs=0.02)
    factors = np.array([v.colour for v in views])
    assert 0.6 <= factors.min() < 0.62 < 1.38 < factors.max() <= 1.4


def test_everything_off_is_the_whole_image():
    off = ViewRecipe(crop_scale=(1, 1), flip=0)
    view = ViewPolicy(off).draw((200, 100), 3)
    assert view == View(box=(0, 0, 1, 1))
    image = ramp(200, 100)
    assert np.array_equal(
        view.pixels(image, SMALL), np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))
    )


def test_flip_is_the_mirror_image():
    plain = View(box=(0.1, 0.2, 0.8, 0.9)).pixels(ramp(), SMALL)
    assert np.array_equal(View(box=(0.1, 0.2, 0.8, 0.9), flip=True).pixels(ramp(), SMALL), plain[:, ::-1])


def test_rotation_turns_about_the_centre_and_shows_no_black_corners():
    image = Image.new("RGB", (120, 120), "white")
    image.paste((255, 0, 0), (54, 0, 66, 60))  # a red hand pointing up
    for angle, (x, y) in {90.0: (0.1, 0.5), -90.0: (0.9, 0.5), 45.0: (0.25, 0.25), 180.0: (0.5, 0.9)}.items():
        pixels = View(box=(0, 0, 1, 1), angle=angle).pixels(image, LARGE)
        assert tuple(pixels[int(y * 144), int(x * 144)] > 128) == (True, False, False)
        assert pixels[..., 0].min() > 240  # both colours have all their red


def test_rotation_near_an_edge_mirrors_the_image():
    view = View(box=(0, 0, 0.3, 0.3), angle=30)
    assert view.pixels(ramp(), SMALL)[..., 2].min() >= 88  # blue is 90 everywhere in the image
    assert View(box=(0, 0, 1, 1), angle=30).pixels(Image.new("RGB", (1, 1), "white"), SMALL).min() == 255


def test_cutout_is_each_models_zero():
    spec = InputSpec(100, 100, mean=(0.2, 0.4, 0.6))
    pixels = View(box=(0, 0, 1, 1), cutout=(0.1, 0.2, 0.4, 0.5)).pixels(
        Image.new("RGB", (9, 9), "white"), spec
    )
    cut = (pixels == [51, 102, 153]).all(-1)
    assert cut.sum() == 900
    assert cut[20:50, 10:40].all()


def test_greyscale_colour_and_blur():
    grey = View(box=(0, 0, 1, 1), greyscale=True).pixels(ramp(), SMALL)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    dark = View(box=(0, 0, 1, 1), colour=(0.5, 1, 1)).pixels(ramp(), SMALL)
    plain = View(box=(0, 0, 1, 1)).pixels(ramp(), SMALL)
    assert dark.mean() == pytest.approx(plain.mean() / 2, abs=1)
    dots = Image.effect_noise((48, 48), 90).convert("RGB")
    roughness = [View(box=(0, 0, 1, 1), blur=b).pixels(dots, SMALL).std() for b in (0, 1 / 48, 3 / 48)]
    assert roughness[0] > 2 * roughness[1] > 2 * roughness[2]


def test_render_is_channels_last_uint8():
    rendered = View(box=(0, 0, 1, 1)).render(ramp(), InputSpec(20, 30))
    assert rendered.shape == (3, 20, 30)
    assert rendered.dtype == torch.uint8
    assert rendered[None].is_contiguous(memory_format=torch.channels_last)


def test_eval_view_is_the_evaluation_transform():
    expected = torch.from_numpy(eval_pixels(ramp(), SMALL).copy()).permute(2, 0, 1)
    assert torch.equal(eval_view(ramp(), SMALL), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_and_thin_images_have_views(size):
    image = Image.new("RGB", size, "white")
    for seed in range(20):
        plain = ViewRecipe(rotation=90)
        assert ViewPolicy(plain).draw(size, seed).pixels(image, SMALL).min() == 255
