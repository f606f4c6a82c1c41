"""The learning rate of each step: a warm-up, then one of three courses (transformers' own).

With k = step - 1, w warm-up steps, n all steps and u = (k - w) / (n - w):

    k < w      base * k / w
    cosine     base * (1 + cos(pi u)) / 2
    linear     base * (1 - u)
    constant   base
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pyft.errors import ConfigError
from pyft.trainer.settings import TrainSettings

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
    "linear": lambda u: 1.0 - u,
    "constant": lambda u: 1.0,
}


def num_warmup_steps(warmup_steps: float, total_steps: int) -> int:
    """Count the warm-up steps; below 1 they are a share of all steps, rounded up."""
    return math.ceil(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)


def learning_rate_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Return the learning rate of one optimizer step, counted from 1."""
    if settings.lr_scheduler_type not in SCHEDULES:
        raise ConfigError(
            f"unknown (train.lr_scheduler_type {settings.lr_scheduler_type!r}): one of {tuple(SCHEDULES)}"
        )
    done = step - 1
    warmup = num_warmup_steps(settings.warmup_steps, total_steps)
    if done < warmup:
        return settings.learning_rate * done / warmup
    progress = min((done - warmup) / max(1, total_steps - warmup), 1.0)
    return settings.learning_rate * SCHEDULES[settings.lr_scheduler_type](progress)
