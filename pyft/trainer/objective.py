"""What is minimised: (batch) -> (loss summed over its targets, how many there are).

The loop divides once, by the targets of a whole optimizer step, so an objective never averages.
Left out: preference objectives, which keep the same contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from pyft.ops.cross_entropy import cross_entropy, linear_cross_entropy

if TYPE_CHECKING:
    from pyft.data.collate import Batch
    from pyft.trainer.settings import Objective


def causal_lm_objective(hidden_fn: Callable[[Batch], Tensor], head: Callable[[], Tensor]) -> Objective:
    """Makes next-token cross-entropy from the hidden states; the logits are never all stored.

    Args:
        hidden_fn: (batch) -> the last hidden states [T, K], on the model's device.
        head: () -> the head's weight [V, K]. Asked for at each batch: wrappers may replace the parameter.

    Returns:
        The objective. Its sum is float32, over the rows whose target is not -100.
    """

    def objective(batch: Batch) -> tuple[Tensor, int]:
        hidden_TK = hidden_fn(batch)
        return linear_cross_entropy(hidden_TK, head(), _targets(batch, hidden_TK)), batch.num_targets

    return objective


def logits_objective(logits_fn: Callable[[Batch], Tensor]) -> Objective:
    """Makes next-token cross-entropy from logits, for models that scale or cap them or whose head has a bias.

    Args:
        logits_fn: (batch) -> logits [T, V], on the model's device.

    Returns:
        The objective. Its sum is float32, over the rows whose target is not -100.
    """

    def objective(batch: Batch) -> tuple[Tensor, int]:
        logits_TV = logits_fn(batch)
        return cross_entropy(logits_TV, _targets(batch, logits_TV)), batch.num_targets

    return objective


def _targets(batch: Batch, beside: Tensor) -> Tensor:
    return batch.targets.reshape(-1).to(beside.device)
