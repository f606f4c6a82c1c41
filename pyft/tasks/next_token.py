"""Next-token cross-entropy: what pretraining and supervised fine-tuning minimise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pyft.model.forward import forward_hidden, forward_logits, to_device
from pyft.model.heads import head_of
from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.linear_cross_entropy import linear_cross_entropy
from pyft.tasks.perplexity import perplexity
from pyft.tasks.task import Loss, Task

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch


class NextToken(Task):
    """A task that learns to continue the text, where its labels say so."""

    def objective(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the cross-entropy summed over the targets that are not -100."""
        return next_token_loss(model, batch)

    def evaluation_metrics(self, loss: float) -> dict[str, float]:
        """Return the perplexity."""
        return {"perplexity": perplexity(loss)}


def next_token_loss(model: nn.Module, batch: Batch) -> Loss:
    """Return the cross-entropy summed over the targets, in float32.

    It goes from the hidden states through the head as it is now, and the logits are never all stored; a head
    that is not a known one gives its logits itself.
    """
    head = head_of(model)
    if isinstance(head, str):
        logits_TV = forward_logits(model, batch)
        targets_T = to_device(batch.targets.reshape(-1), logits_TV.device)
        return Loss(cross_entropy(logits_TV, targets_T), batch.num_targets)
    hidden_TK = forward_hidden(model, batch)
    loss = linear_cross_entropy(
        hidden_TK,
        head.weight,
        to_device(batch.targets.reshape(-1), hidden_TK.device),
        bias=head.bias,
        logit_scale=head.scale,
        logit_softcap=head.softcap,
        num_targets=batch.num_targets,
    )
    return Loss(loss, batch.num_targets)
