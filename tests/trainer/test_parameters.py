from __future__ import annotations

import pytest
import torch
from torch import nn

from pyft.config.schema import TrainConfig
from pyft.errors import ConfigError
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.settings import TrainSettings


def trained_parameters(model, **numbers):
    return TrainedParameters(model, TrainSettings.of(TrainConfig(**numbers)))


def test_gradients_of_narrow_parameters_add_up_in_float32():
    """256 + 1 is 256 in bfloat16."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    parameters = trained_parameters(model)
    for value in [256.0] + [1.0] * 16:
        model(torch.tensor([[value]], dtype=torch.bfloat16)).sum().backward()
        assert model.weight.grad is None
    assert parameters.gradients()[0].item() == 256.0 + 16.0
    assert parameters.gradients()[0].dtype == torch.float32


def test_clipping_scales_to_the_norm_and_none_leaves_it():
    for limit, factor in ((1.0, 1 / 5), (None, 1.0)):
        model = nn.Linear(2, 1, bias=False)
        parameters = trained_parameters(model)
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        seen = []
        parameters._optimizer._adamw.register_step_pre_hook(
            lambda *_, m=model, s=seen: s.append(m.weight.grad.clone())
        )
        norm = parameters.gradient_norm()
        parameters.step(0.1, norm, limit)
        assert norm == 5.0
        torch.testing.assert_close(seen[0], torch.tensor([[3.0, 4.0]]) * factor)
        assert model.weight.grad is None


def test_decay_spares_vectors():
    model = nn.Linear(3, 3)
    parameters = trained_parameters(model, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    parameters.step(0.1, torch.tensor(0.0), None)
    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(model.bias.detach(), before["bias"])


def test_tied_parameters_are_trained_once(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    parameters = trained_parameters(model)
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert len(parameters.gradients()) == 1
    parameters.step(0.1, parameters.gradient_norm(), None)
    parameters.save(tmp_path / "o.safetensors")
    assert parameters.weight_bytes == 32 and parameters.state_bytes == 32 + 16 * 8 + 64
    again = trained_parameters(model)
    again.load(tmp_path / "o.safetensors")
    again.save(tmp_path / "p.safetensors")
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


def test_state_of_other_parameters_is_refused(tmp_path):
    trained_parameters(nn.Linear(2, 2)).save(tmp_path / "o.safetensors")
    with pytest.raises(ConfigError, match=r"other parameters .*o\.safetensors"):
        trained_parameters(nn.Linear(2, 2, bias=False)).load(tmp_path / "o.safetensors")
