"""Lay samples out as one flat row of tensors; the only place that shifts labels.

    samples        [a0 a1 a2]      [b0 b1]
    input_ids      [a0 a1 a2 b0 b1]
    targets        [l(a1) l(a2) -100 l(b1) -100]     targets[t] = labels[t+1]; -100 at a sample's end
    position_ids   [0 1 2 0 1]
    cu_seqlens     [0 3 5]

There is no padding: a batch of several samples or packs is one longer row. torch is imported when the first
batch is made, so that looking at data needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyft.data.encode.sample import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from pyft.data.encode.sample import Sample


@dataclass(frozen=True)
class Batch:
    """One row of T tokens from S samples.

    input_ids, targets, position_ids: [1, T] int64; cu_seqlens: [S+1] int32; max_seqlen: longest sample;
    num_targets: targets that are not -100; num_tokens: T.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    num_targets: int
    num_tokens: int


def collate(samples: Sequence[Sample]) -> Batch:
    """Make one batch of whole samples.

    Args:
        samples: At least one, none empty.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: No sample, or an empty one.
    """
    import torch

    if not samples or not all(sample.input_ids for sample in samples):
        raise ValueError("collate: samples must be given and have tokens")
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    boundaries = [0]
    for sample in samples:
        ids.extend(sample.input_ids)
        targets.extend(sample.labels[1:])
        targets.append(IGNORED)
        positions.extend(range(len(sample.input_ids)))
        boundaries.append(len(ids))
    return Batch(
        input_ids=torch.tensor([ids], dtype=torch.int64),
        targets=torch.tensor([targets], dtype=torch.int64),
        position_ids=torch.tensor([positions], dtype=torch.int64),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        max_seqlen=max(len(sample.input_ids) for sample in samples),
        num_targets=len(targets) - targets.count(IGNORED),
        num_tokens=len(ids),
    )
