"""Looking at the model without touching the run: validation loss, and questions answered.

Whatever happens in here, the run goes on as if it had not: no gradients, dropout off, the random generators
put back. It can be left at any batch or answer (signals), and is then done again from the start after a
resumption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyft.trainer.rng import same_rng_after

if TYPE_CHECKING:
    from pyft.trainer.settings import BatchSource, Generate, Objective, Question


class EvaluationStopped(Exception):
    """Raised by a poll that wants the evaluation to be left."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation for the time of a block, and lets the block draw random numbers unseen."""
    was_training = model.training
    model.eval()
    try:
        with same_rng_after(), torch.no_grad():
            yield
    finally:
        model.train(was_training)


def validation_loss(objective: Objective, source: BatchSource, poll: Callable[[], None]) -> tuple[float, int]:
    """Measures the mean loss over all targets of a source.

    Args:
        objective: as in training.
        source: every batch of its epoch 0 is taken once.
        poll: called before each batch; may raise EvaluationStopped.

    Returns:
        The sum of all losses over the number of all targets (NaN when there is none), and that number.
    """
    loss_sum, num_targets = 0.0, 0
    for index in range(source.num_batches):
        poll()
        batch = source.batch(0, index)
        if batch.num_targets > 0:
            batch_sum, batch_targets = objective(batch)
            loss_sum += batch_sum.item()
            num_targets += batch_targets
    return (loss_sum / num_targets if num_targets else float("nan")), num_targets


def ask(
    questions: Sequence[Question], generate: Generate, poll: Callable[[], None], facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Has questions answered, one after another.

    Args:
        questions: what to ask.
        generate: answers one.
        poll: called before and after each answer; may raise EvaluationStopped.
        facts: the row's first fields: stage, step, when.

    Yields:
        A row of samples.jsonl for each.
    """
    for question in questions:
        poll()
        completion = generate(question.input_ids)
        poll()  # an answer that a signal cut short is no answer
        yield {
            **facts,
            "prompt": question.prompt,
            "completion": completion.text,
            "stopped": completion.stopped,
        }
