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

import numpy as np

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
    """Make one batch, on the CPU, of whole samples: at least one, none empty."""
    import torch

    lengths = [len(sample) for sample in samples]
    if not lengths or not all(lengths):
        raise ValueError("collate: samples must be given and have tokens")
    boundaries = np.cumsum([0, *lengths])
    ids = np.concatenate([sample.input_ids for sample in samples], dtype=np.int64)
    labels = np.empty(len(ids) + 1, np.int64)
    np.concatenate([sample.labels for sample in samples], out=labels[:-1])
    labels[boundaries] = IGNORED  # the first of each sample has nothing before it
    targets = labels[1:]
    steps = np.arange(max(lengths))
    positions = np.concatenate([steps[:length] for length in lengths])
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        targets=torch.from_numpy(targets)[None],
        position_ids=torch.from_numpy(positions)[None],
        cu_seqlens=torch.from_numpy(boundaries.astype(np.int32)),
        max_seqlen=max(lengths),
        num_targets=int(np.count_nonzero(targets != IGNORED)),
        num_tokens=len(ids),
    )
