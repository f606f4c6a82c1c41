"""A few tokens to run through a model, to find out by its answer what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ProbeBatch(NamedTuple):
    """A batch as `forward` takes it."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


def probe_batch(model: PreTrainedModel, lengths: list[int]) -> ProbeBatch:
    """Make samples of the given lengths; the last one is the same whatever stands before it."""
    device = model.get_input_embeddings().weight.device
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * (index + 1) + length) % rows for length in lengths for index in range(length)]
    positions = [index for length in lengths for index in range(length)]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return ProbeBatch(
        torch.tensor([ids], device=device), torch.tensor([positions], device=device), ends, max(lengths)
    )


@contextlib.contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
