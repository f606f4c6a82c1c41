"""What is minimised: (batch) -> (loss summed over its targets, how many there are).

The loop divides once, by the targets of a whole optimizer step, so an objective never averages.
Left out: preference objectives, which keep the same contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.linear_cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch
    from pyft.trainer.settings import Objective


def causal_lm_objective(
    hidden_fn: Callable[[Batch], Tensor],
    head: Callable[[], tuple[Tensor, Tensor | None]],
    *,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> Objective:
    """Make next-token cross-entropy from the hidden states; the logits are never all stored.

    Args:
        hidden_fn: (batch) -> the last hidden states [T, K], on the model's device.
        head: () -> the head's weight [V, K], and its bias [V] or None. Asked for at each batch: wrappers may
            replace the parameters.
        logit_scale: factor of the logits.
        logit_softcap: the bound that tanh bends them to, or None.

    Returns:
        The objective. Its sum is float32, over the rows whose target is not -100.
    """

    def objective(batch: Batch) -> tuple[Tensor, int]:
        hidden_TK = hidden_fn(batch)
        weight_VK, bias_V = head()
        loss = linear_cross_entropy(
            hidden_TK,
            weight_VK,
            _targets(batch, hidden_TK),
            bias=bias_V,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
            num_targets=batch.num_targets,
        )
        return loss, batch.num_targets

    return objective


def logits_objective(logits_fn: Callable[[Batch], Tensor]) -> Objective:
    """Make next-token cross-entropy from logits, for heads that are no plain linear layer.

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
