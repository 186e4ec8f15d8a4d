"""Terms with projectors and memory banks in the loop: resumed bit by bit, skipped steps, two processes as one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distillation.test_distiller import IMAGES, StopAt, tiny
from tests.helpers.killing import free_port, in_ranks
from tests.helpers.stages import network, same, small_context, small_stage, train
from tests.helpers.terms_in_two import AS_ONE, every, keep_every

from tutelage.core.errors import TutelageError
from tutelage.distillation.checkpoint import load_checkpoint, state_of
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import CKA, CRD, KL, CrossEntropy, ReviewKD, VkD
from tutelage.distillation.losses.contrastive import Bank
from tutelage.distillation.objective import Objective
from tutelage.distillation.stop import Interrupted
from tutelage.models.features import POOLED, network_info, run_with_features


def stage(**settings: Any) -> Any:
    terms = [CrossEntropy(), VkD(), ReviewKD((-2, POOLED), (-2, POOLED)), CRD(width=8, negatives=20)]
    return small_stage(objective=Objective(terms), **settings)


@pytest.mark.parametrize("step", [8])
def test_projectors_and_banks_are_resumed_bit_by_bit(tmp_path: Path, step: int) -> None:
    whole = stage()
    unbroken = train(whole, small_context(tmp_path / "unbroken"))
    with pytest.raises(Interrupted):
        train(stage(), small_context(tmp_path / "stopped", StopAt(step)))
    again = stage()
    resumed = train(again, small_context(tmp_path / "stopped"))
    assert all(same(resumed.states[name], unbroken.states[name]) for name in ("last", "best", "ema"))
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in unbroken.rows]
    learnt = state_of(again.objective)
    assert same(learnt, state_of(whole.objective))
    assert learnt["terms.crd.bank.step"] == 12
    assert learnt["terms.crd.bank.student"].shape == (len(whole.train), 8)
    assert set(unbroken.rows[0]["loss"]) == {"total", "cross_entropy", "vkd", "review_kd", "crd"}
    for state in unbroken.states.values():  # what is exported is the student alone
        assert state.keys() == whole.model.module.state_dict().keys()


def test_a_step_that_is_not_finite_leaves_the_statistics_of_a_projector_alone(tmp_path: Path) -> None:
    """They would hold NaN from then on, and the checkpoint too."""
    bad = stage(max_bad_steps=5, epochs=1)
    head = bad.model.module
    calls = []

    def poison(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        calls.append(None)
        return output * float("nan") if head.training and len(calls) == 4 else None

    head.blocks[3].register_forward_hook(poison)
    trained = train(bad, small_context(tmp_path))
    assert trained.rows[0]["bad_steps"] == 1
    groups = load_checkpoint(tmp_path / "checkpoints" / "distill.safetensors")[0]
    assert all(tensor.isfinite().all() for tensor in groups["terms"].values())
    assert any("running_mean" in name for name in groups["terms"])


# --- the input of the head


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_pooled_is_what_goes_into_the_head(name: str) -> None:
    module = network(name, 0).module.eval()
    images = (
        torch.randn(2, 3, 32, 32) if name != "test_vit" else torch.randn(2, 3, *module.patch_embed.img_size)
    )
    output, found = run_with_features(module, module, images, [POOLED])
    assert torch.allclose(module.get_classifier()(found[POOLED]), output, atol=1e-6)
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    info = network_info(module, [POOLED], *images.shape[2:], torch.device("cpu"))
    assert info.channels(POOLED) == module.num_features
    assert info.prefix_tokens == (1 if name == "test_vit" else 0)


def test_pooled_of_any_module_and_of_one_without_a_head() -> None:
    module = tiny(6)
    output, found = run_with_features(module, module, IMAGES, [POOLED])
    assert torch.equal(module[-1](found[POOLED]), output)
    with pytest.raises(
        TutelageError, match=r"layer 'pooled': Sequential has no linear layer or 1x1 convolution"
    ):
        run_with_features(module[:4], module[:4], IMAGES, [POOLED])


def test_default_layers_suit_a_cnn_and_a_transformer() -> None:
    vit, cnn = network("test_vit", 0).module, network("test_efficientnet", 0).module
    for student, teacher in ((cnn, vit), (vit, cnn)):
        terms = [CKA(), VkD(), ReviewKD(), CRD(width=4, negatives=3)]
        distiller = Distiller(student, teacher, [KL(), *terms], train_images=9)
        losses = distiller(torch.randn(2, 3, 160, 160), index=torch.tensor([1, 8]))
        assert all(value.isfinite().all() for value in losses.values())


# --- several processes


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """ReviewKD is left out: its BatchNorm has the statistics of each process's part of a batch."""
    begun = in_ranks([partial(keep_every, tmp_path)] * 2, log=tmp_path / "log", port=free_port())
    alone = every()
    for log, process in begun:
        process.join(300)
        assert process.exitcode == 0, log.read_text()
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in AS_ONE:
            assert shared[name].keys() == alone[name].keys()
            for key, tensor in alone[name].items():
                assert torch.allclose(shared[name][key], tensor, rtol=1e-3, atol=1e-4), (rank, name, key)


def test_each_process_keeps_its_banks_by_itself() -> None:
    distiller = Distiller(tiny(4), tiny(8), [CRD(width=4, negatives=3)], image_size=(32, 32), train_images=9)
    (bank,) = [module for module in distiller.modules() if isinstance(module, Bank)]
    ignored = distiller._ddp_params_and_buffers_to_ignore
    names = {
        name for name, tensor in distiller.named_buffers() if any(tensor is own for own in bank.buffers())
    }
    assert {*ignored} == names
    assert len(names) == 4
