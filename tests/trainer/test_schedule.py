from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from pyft.config.schema import TrainConfig
from pyft.errors import ConfigError
from pyft.trainer.schedule import learning_rate_at, num_warmup_steps
from pyft.trainer.settings import TrainSettings

PEERS = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}


def settings_of(**numbers):
    return TrainSettings.of(TrainConfig(**numbers))


@pytest.mark.parametrize("schedule", sorted(PEERS))
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.03, 2), (5, 5), (1, 1)])
def test_schedules_equal_transformers(schedule, warmup, steps):
    total = 40
    settings = settings_of(lr_scheduler_type=schedule, warmup_steps=warmup, learning_rate=0.3)
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
    cosine = settings_of(lr_scheduler_type="cosine", warmup_steps=10, learning_rate=2.0)
    assert learning_rate_at(cosine, 6, 110) == 1.0
    assert learning_rate_at(cosine, 11, 110) == 2.0
    assert learning_rate_at(cosine, 61, 110) == pytest.approx(1.0)
    assert learning_rate_at(cosine, 36, 110) == pytest.approx(1.0 + math.cos(math.pi / 4))
    linear = settings_of(lr_scheduler_type="linear", warmup_steps=0, learning_rate=1.0)
    assert [learning_rate_at(linear, step, 4) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]


def test_unknown_schedule():
    with pytest.raises(ConfigError, match="lr_scheduler_type 'step'"):
        learning_rate_at(replace(settings_of(), lr_scheduler_type="step"), 1, 10)
