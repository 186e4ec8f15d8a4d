"""Networks that compute as in int8: the rounding, the state, the gradients, and agreement with the real file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.data.splits import Splits
from tutelage.deploy.build import CALIBRATION, pictures
from tutelage.deploy.qad.fake import ActivationRounding, WeightRounding, fake_quantised, float_state
from tutelage.deploy.qad.tune import Tuner
from tutelage.models.source import Model

pytest.importorskip("nncf", reason="needs the extra `deploy`")


def test_each_channel_of_a_weight_has_its_own_step() -> None:
    weight = torch.tensor([[1.0, -0.25, 0.126], [10.0, 0.03, -10.0]], requires_grad=True)
    rounded = WeightRounding(0, 127)(weight)
    steps = torch.tensor([[1 / 127], [10 / 127]])
    assert torch.allclose(rounded, (weight / steps).round() * steps)
    assert rounded[1, 1] == 0
    rounded.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(2, 3)), "the straight-through estimator lets all pass"


def test_one_step_for_a_whole_weight() -> None:
    weight = torch.tensor([[1.0, -0.25], [10.0, 0.03]])
    rounded = WeightRounding(None, 127)(weight)
    assert torch.allclose(rounded, (weight * 12.7).round() / 12.7)


def test_a_weight_of_zeros_stays() -> None:
    assert torch.equal(WeightRounding(0, 127)(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_activations_are_clamped_and_rounded_and_zero_is_exact() -> None:
    rounding = ActivationRounding(torch.tensor(-1.0), torch.tensor(2.0), 256)
    values = torch.tensor([-5.0, -0.5, 0.0, 0.01, 1.0, 7.0], requires_grad=True)
    rounded = rounding(values)
    step = 3 / 255
    wanted = (values.detach().clamp(-1, 2) / step).round() * step
    assert torch.allclose(rounded.detach(), wanted, atol=1e-5)
    assert rounded[2] == 0
    rounded.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_the_network_keeps_its_parameters_and_answers_nearly_alike(student: Model, splits: Splits) -> None:
    images = pictures(student, splits.train, CALIBRATION)
    before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
    made = fake_quantised(student.module, images.pixels, student.input_spec)
    for name, parameter in student.module.named_parameters():
        assert torch.equal(made.get_parameter(name), parameter), name
    assert {name for name, _ in made.named_parameters()} == {
        name for name, _ in student.module.named_parameters()
    }
    state = float_state(student.module, made.state_dict())
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert all(torch.equal(student.module.state_dict()[name], before[name]) for name in before), "unchanged"
    x = torch.from_numpy(np.zeros((2, 3, 32, 32), np.float32))
    made.train()
    made(x).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.slow
def test_it_is_closer_to_the_int8_file_than_the_float_network_is(tuner: Tuner, tmp_path: Path) -> None:
    """Else the training would adapt to another rounding than that of the file."""
    from tutelage.data.input_spec import normalised
    from tutelage.deploy.build import Material, as_model, build

    student, splits = tuner.student, tuner.splits
    deployed = build(student, tmp_path, Material(splits.train, max_drop=100.0))
    variant = next(one for one in deployed.variants if one.file == "model-int8.xml")
    images = torch.from_numpy(
        normalised(pictures(student, splits.val, CALIBRATION).pixels, student.input_spec)
    )
    made = fake_quantised(student.module, tuner.calibration, student.input_spec).eval()
    with torch.inference_mode():
        file = as_model(deployed, variant, 16).module(images)
        simulated = (made(images) - file).abs().mean()
        exact = (student.module.eval()(images) - file).abs().mean()
    assert simulated < 0.7 * exact
