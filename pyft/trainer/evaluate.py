"""Measuring the model without touching the run.

Whatever happens in here, the run continues as if it had not: no gradients, dropout off, the random generators
put back. It can be left at any batch or answer (signals), and is then done again from the start after a
resumption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyft.trainer.rng import same_rng_after
from pyft.trainer.totals import Totals, add_metrics

if TYPE_CHECKING:
    from pyft.tasks.task import Task
    from pyft.trainer.batches import Batches


class EvaluationStopped(Exception):
    """Raised by a poll that wants the evaluation to be left."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation for the time of a block, and let the block draw random numbers unseen."""
    was_training = model.training
    model.eval()
    try:
        with same_rng_after(), torch.no_grad():
            yield
    finally:
        model.train(was_training)


def measure(
    task: Task, model: nn.Module, batches: Batches, poll: Callable[[], None]
) -> dict[str, float | int]:
    """Return the `eval_` fields of a log row, from every batch of epoch 0.

    `poll` is called before each batch, and may raise EvaluationStopped. Without a target the loss is NaN.
    """
    totals, num_targets = Totals(), 0
    for index in range(batches.num_batches):
        poll()
        batch = batches.batch(0, index)
        if task.count(batch) > 0:
            totals.add(task.objective(model, batch))
            num_targets += batch.num_targets
    metrics = totals.fetch()
    loss = metrics.pop("loss")
    fields = {"loss": loss, **task.evaluation_metrics(loss), "num_target_tokens": num_targets}
    return {f"eval_{name}": value for name, value in add_metrics(fields, metrics).items()}
