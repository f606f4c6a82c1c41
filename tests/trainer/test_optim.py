from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from pyft.errors import ConfigError
from pyft.trainer.optim import Optimizer, learning_rate_at, num_warmup_steps
from pyft.trainer.settings import TrainSettings

PEERS = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.parametrize("schedule", sorted(PEERS))
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.03, 2), (5, 5), (1, 1)])
def test_schedules_equal_transformers(schedule, warmup, steps):
    total = 40
    settings = TrainSettings(lr_scheduler_type=schedule, warmup_steps=warmup, learning_rate=0.3)
    assert num_warmup_steps(warmup, total) == steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    peer = PEERS[schedule](optimizer, steps, total)
    for step in range(1, total + 1):
        assert learning_rate_at(settings, step, total) == pytest.approx(
            peer.get_last_lr()[0], rel=1e-12, abs=1e-15
        )
        optimizer.step()
        peer.step()


def test_schedules_in_closed_form():
    cosine = TrainSettings(lr_scheduler_type="cosine", warmup_steps=10, learning_rate=2.0)
    assert learning_rate_at(cosine, 6, 110) == 1.0
    assert learning_rate_at(cosine, 11, 110) == 2.0
    assert learning_rate_at(cosine, 61, 110) == pytest.approx(1.0)
    assert learning_rate_at(cosine, 36, 110) == pytest.approx(1.0 + math.cos(math.pi / 4))
    linear = TrainSettings(lr_scheduler_type="linear", warmup_steps=0, learning_rate=1.0)
    assert [learning_rate_at(linear, step, 4) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]


def test_unknown_schedule():
    with pytest.raises(ConfigError, match="lr_scheduler_type 'step'"):
        Optimizer(nn.Linear(2, 2), TrainSettings(lr_scheduler_type="step"))


def test_gradients_of_narrow_parameters_add_up_in_float32():
    """256 + 1 is 256 in bfloat16."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = Optimizer(model, TrainSettings())
    for value in [256.0] + [1.0] * 16:
        model(torch.tensor([[value]], dtype=torch.bfloat16)).sum().backward()
        assert model.weight.grad is None
    assert optimizer.gradients()[0].item() == 256.0 + 16.0
    assert optimizer.gradients()[0].dtype == torch.float32


def test_clipping_scales_to_the_norm_and_none_leaves_it():
    for limit, factor in ((1.0, 1 / 5), (None, 1.0)):
        model = nn.Linear(2, 1, bias=False)
        optimizer = Optimizer(model, TrainSettings())
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        seen = []
        optimizer._adamw.register_step_pre_hook(lambda *_, m=model, s=seen: s.append(m.weight.grad.clone()))
        norm = optimizer.gradient_norm()
        optimizer.step(0.1, norm, limit)
        assert norm == 5.0
        torch.testing.assert_close(seen[0], torch.tensor([[3.0, 4.0]]) * factor)
        assert model.weight.grad is None


def test_decay_spares_vectors():
    model = nn.Linear(3, 3)
    optimizer = Optimizer(model, TrainSettings(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1, 0.0, None)
    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(model.bias.detach(), before["bias"])


def test_tied_parameters_are_trained_once(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    optimizer = Optimizer(model, TrainSettings())
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert len(optimizer.gradients()) == 1
    optimizer.step(0.1, optimizer.gradient_norm(), None)
    optimizer.save(tmp_path / "o.safetensors")
    assert optimizer.weight_bytes == 32 and optimizer.state_bytes == 32 + 16 * 8 + 64
    again = Optimizer(model, TrainSettings())
    again.load(tmp_path / "o.safetensors")
    again.save(tmp_path / "p.safetensors")
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


def test_state_of_other_parameters_is_refused(tmp_path):
    Optimizer(nn.Linear(2, 2), TrainSettings()).save(tmp_path / "o.safetensors")
    with pytest.raises(ConfigError, match=r"other parameters .*o\.safetensors"):
        Optimizer(nn.Linear(2, 2, bias=False), TrainSettings()).load(tmp_path / "o.safetensors")
