"""Optimizers by themselves, and one that only this file knows, behind everything that AdamW is behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import SMALL

from pyft.config.schema import TrainConfig
from pyft.errors import ConfigError
from pyft.trainer.optim import OPTIMIZERS, AdamW
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.settings import TrainSettings

SETTINGS = TrainSettings.of(TrainConfig(**SMALL, weight_decay=0.1))


class Momentum:
    """Gradient descent with a momentum of 0.9."""

    name = "Momentum"

    def __init__(self, weights, settings):
        self._weights, self._velocity = weights, {}

    @property
    def state_bytes(self):
        return sum(weight.nbytes for weight in self._weights.values())

    @torch.no_grad()
    def step(self, learning_rate):
        for name, weight in self._weights.items():
            velocity = self._velocity.get(name, torch.zeros_like(weight))
            self._velocity[name] = 0.9 * velocity + weight.grad
            weight -= learning_rate * self._velocity[name]

    def state(self):
        return {f"velocity/{name}": tensor for name, tensor in self._velocity.items()}

    def load(self, state):
        self._velocity = {name.removeprefix("velocity/"): tensor for name, tensor in state.items()}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "momentum", Momentum)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)).to(dtype)


def learn(model, parameters, steps, optimizer=None):
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(model[0].weight.dtype)
        model(x).float().square().sum().backward()
        if optimizer is None:
            parameters.step(0.01, parameters.gradient_norm(), None)
        else:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, fused=True)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ],
)
def test_each_learns_as_its_peer(name, peer):
    ours, theirs = model_of(), model_of()
    learn(ours, TrainedParameters(ours, TrainSettings.of(TrainConfig()), name), range(5))
    learn(theirs, None, range(5), peer(theirs.parameters()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS | {"momentum": Momentum})
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_goes_on_from_its_file(tmp_path, name, dtype):
    straight, stopped = model_of(dtype), model_of(dtype)
    learn(straight, TrainedParameters(straight, SETTINGS, name), range(6))
    parameters = TrainedParameters(stopped, SETTINGS, name)
    learn(stopped, parameters, range(3))
    parameters.save(tmp_path / "o.safetensors")
    resumed = model_of(dtype)
    resumed.load_state_dict(stopped.state_dict())
    again = TrainedParameters(resumed, SETTINGS, name)
    again.load(tmp_path / "o.safetensors")
    learn(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_the_file_of_another_optimizer_is_refused(tmp_path):
    TrainedParameters(model_of(), SETTINGS, "momentum").save(tmp_path / "o.safetensors")
    with pytest.raises(ConfigError, match="the state of another optimizer"):
        TrainedParameters(model_of(), SETTINGS).load(tmp_path / "o.safetensors")


def test_the_state_is_named_by_kind_and_weight():
    weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    adamw = AdamW(weights, SETTINGS)
    assert adamw.state() == {} and adamw.state_bytes == 8 * (6 + 2)
    adamw.step(0.1)
    assert set(adamw.state()) == {
        f"{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in weights
    }
