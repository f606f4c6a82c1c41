"""What the trainer is told: its numbers, and the shapes of the things and functions it is handed.

Everything here is plain: no config object, no model class, no tokenizer reaches the trainer. The names of
the numbers are those of the recipe's `train:` section. What may change between a run and its resumption is
said once, in `MAY_CHANGE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from pyft.data.batches.collate import Batch

    Objective = Callable[[Batch], tuple[Tensor, int]]
    """(batch as its source made it, on the CPU) -> (summed loss, a scalar with its graph; its targets)."""

SaveWeights = Callable[[Path], None]
"""Writes the trained weights into an existing folder, under the same file names each time; nowhere else."""

LoadWeights = Callable[[Path], None]
"""Reads what `SaveWeights` wrote back into the live model, in place: parameters stay the same objects."""

MAY_CHANGE = (
    "max_steps",
    "num_train_epochs",
    "eval_steps",
    "eval_on_start",
    "save_steps",
    "save_total_limit",
    "logging_steps",
)
"""Settings that may differ between a checkpoint and the run resuming it; the others are its identity."""


class BatchSource(Protocol):
    """Batches as a pure function of (epoch, index), so that a position in the data is two numbers."""

    num_batches: int

    def batch(self, epoch: int, index: int) -> Batch:
        """Give batch `index` (from 0, below `num_batches`) of epoch `epoch` (from 0)."""
        ...


@dataclass(frozen=True)
class Question:
    """One question asked while training: its text for people, and its ids as chat would send them."""

    prompt: str
    input_ids: list[int]


@dataclass(frozen=True)
class Completion:
    """An answer: its text without special tokens, and whether it ended by itself."""

    text: str
    stopped: bool


Generate = Callable[[list[int]], Completion]
"""Answers a prompt's ids. It may look at `SignalWatch.stop_requested` between tokens and give up early."""


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a run; names, meanings and defaults are the recipe's.

    `warmup_steps` below 1 is a share of all steps. `max_steps`, when set, wins over `num_train_epochs`.
    `eval_steps` and `save_steps` of None mean at the end only. `eval_on_start` measures the validation loss
    before step 1 as well.
    """

    num_train_epochs: float = 3.0
    max_steps: int | None = None
    gradient_accumulation_steps: int = 16
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    logging_steps: int = 1
    eval_steps: int | None = 50
    eval_on_start: bool = False
    save_steps: int | None = 50
    save_total_limit: int = 2
    seed: int = 42

    def steps_per_epoch(self, num_batches: int) -> int:
        """Count the optimizer steps of one epoch; its last window of micro-batches may be shorter.

        Args:
            num_batches: micro-batches of one epoch.

        Returns:
            ceil(num_batches / gradient_accumulation_steps).
        """
        return math.ceil(num_batches / self.gradient_accumulation_steps)

    def total_steps(self, num_batches: int) -> int:
        """Count the optimizer steps of the whole run.

        Args:
            num_batches: micro-batches of one epoch.

        Returns:
            `max_steps` when it is set, else ceil(num_train_epochs * steps of one epoch).
        """
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.num_train_epochs * self.steps_per_epoch(num_batches))

    def identity(self) -> dict[str, Any]:
        """Give the settings a resumed run has to share with its checkpoint.

        Returns:
            Every field but those of `MAY_CHANGE`.
        """
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in MAY_CHANGE
        }


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `already_finished`: it had ended before, and nothing was touched."""

    step: int
    total_steps: int
    num_skipped_steps: int
    last_loss: float | None
    eval_loss: float | None
    already_finished: bool = False
