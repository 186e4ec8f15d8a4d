"""One mix of a batch, the same for every model's images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.core.recipe import ViewRecipe
from tutelage.data.mix import Mix, draw_mix

MIXUP, CUTMIX = ViewRecipe(mixup=0.4), ViewRecipe(cutmix=1.0)


def constant(batch: int, size: int) -> torch.Tensor:
    """Image i is all i."""
    return torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1).expand(batch, 3, size, size).clone()


def test_off_is_none():
    assert draw_mix(ViewRecipe(), 8, 0) is None
    assert draw_mix(ViewRecipe(mixup=1, mix_probability=0), 8, 0) is None
    assert draw_mix(MIXUP, 1, 0) is None


def test_mixup_is_the_weighted_mean_for_every_model_and_its_targets():
    mix = draw_mix(MIXUP, 6, 3)
    assert mix is not None
    assert mix.kind == "mixup"
    expected = mix.lam * torch.arange(6.0) + (1 - mix.lam) * mix.permutation
    for size in (8, 20):
        torch.testing.assert_close(mix.images(constant(6, size))[:, 0, 0, 0], expected)
    torch.testing.assert_close(mix.targets(torch.eye(6)) @ torch.arange(6.0), expected)
    torch.testing.assert_close(mix.targets(torch.eye(6)).sum(1), torch.ones(6))


@pytest.mark.parametrize("seed", range(10))
def test_cutmix_pastes_the_same_box_at_every_resolution(seed):
    mix = draw_mix(CUTMIX, 4, seed)
    assert mix is not None
    assert mix.kind == "cutmix"
    assert mix.box is not None
    small, large = (mix.images(constant(4, size)) for size in (50, 200))
    for mixed in (small, large):
        own = (mixed[0, 0] == 0).float().mean().item()
        assert own == pytest.approx(mix.lam, abs=0.04)
        assert set(mixed[0].unique().tolist()) <= {0.0, float(mix.permutation[0])}
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert ((small - shrunk).abs() > 1e-6).float().mean() < 0.09  # the border of the box


def test_the_same_seed_is_the_same_mix():
    first, again, other = (draw_mix(MIXUP, 8, seed) for seed in (5, 5, 6))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.lam == again.lam != other.lam
    assert torch.equal(first.permutation, again.permutation)


def test_lam_has_the_beta_distribution_asked_for():
    lams = [mix.lam for seed in range(1500) if (mix := draw_mix(MIXUP, 2, seed))]
    assert np.mean(lams) == pytest.approx(0.5, abs=0.03)
    assert np.var(lams) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.08)


def test_both_on_take_turns_and_probability_counts_batches():
    recipe = ViewRecipe(mixup=1, cutmix=1, mix_probability=0.6)
    kinds = [mix.kind if (mix := draw_mix(recipe, 4, seed)) else None for seed in range(1500)]
    assert kinds.count(None) / 1500 == pytest.approx(0.4, abs=0.04)
    assert kinds.count("mixup") / 1500 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("batch", [2, 3, 5, 8, 33])
def test_every_image_has_another_as_partner(batch):
    mix = draw_mix(MIXUP, batch, 0)
    assert mix is not None
    assert sorted(set(mix.permutation.tolist()) - set(range(batch))) == []
    assert (mix.permutation != torch.arange(batch)).all()


@pytest.mark.parametrize("recipe", [MIXUP, CUTMIX])
def test_two_processes_mix_as_one(recipe):
    whole = torch.rand(8, 3, 12, 12)
    one, half = draw_mix(recipe, 8, 9), draw_mix(recipe, 4, 9)
    assert one is not None
    assert half is not None
    assert torch.equal(one.images(whole), torch.cat([half.images(whole[:4]), half.images(whole[4:])]))


def test_uint8_is_rounded_and_the_input_kept():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4).clone()
    before = images.clone()
    mixed = Mix("mixup", 0.3, torch.tensor([1, 0])).images(images)
    assert mixed.dtype == torch.uint8
    assert mixed[:, 0, 0, 0].tolist() == [178, 76]
    assert torch.equal(images, before)
    assert Mix("mixup", 0.3, torch.tensor([1, 0])).images(images.bfloat16()).dtype == torch.bfloat16
