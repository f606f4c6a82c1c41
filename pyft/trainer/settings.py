"""The numbers of a run. Their names, meanings and defaults are those of the recipe's `train:` section."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyft.config.schema import TrainConfig

MAY_CHANGE = (
    "max_steps",
    "num_train_epochs",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
)
"""Settings that may differ between a checkpoint and the run resuming it; the others are its identity."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The keys of a recipe that the trainer reads."""

    num_train_epochs: float
    max_steps: int | None
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    max_grad_norm: float | None
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    logging_steps: int
    eval_steps: int | None
    save_steps: int | None
    save_total_limit: int
    seed: int

    @classmethod
    def of(cls, section: TrainConfig) -> TrainSettings:
        """Take them out of a recipe's `train:` section."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})

    def total_steps(self, num_batches: int) -> int:
        """Count the optimizer steps; the last window of an epoch may be shorter than the others."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.num_train_epochs * math.ceil(num_batches / self.gradient_accumulation_steps))

    def identity(self) -> dict[str, Any]:
        """Return the settings a resumed run has to share with its checkpoint."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in MAY_CHANGE
        }
