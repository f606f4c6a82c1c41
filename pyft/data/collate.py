"""Lay samples out as one flat row of tensors; the only place that shifts labels; and the order of batches.

    samples        [a0 a1 a2]      [b0 b1]
    input_ids      [a0 a1 a2 b0 b1]
    targets        [l(a1) l(a2) -100 l(b1) -100]     targets[t] = labels[t+1]; -100 at a sample's end
    position_ids   [0 1 2 0 1]
    cu_seqlens     [0 3 5]

There is no padding: a batch of several samples or packs is one longer row. torch is imported when the first
batch is made, so that looking at data needs none of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pyft.data.encode import Sample

IGNORED = -100


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


class BatchSource:
    """Batches by (epoch, index), a pure function: resuming needs no more state than these two numbers."""

    def __init__(self, groups: Sequence[Sequence[Sample]], batch_size: int, seed: int, shuffle: bool) -> None:
        """Keep the groups.

        Args:
            groups: Packs, or single samples; each goes into one batch whole.
            batch_size: Groups in a batch; the last batch of an epoch may have fewer.
            seed: Of the order of groups in each epoch.
            shuffle: Whether to change the order at all.

        Raises:
            ValueError: There is no group, or batch_size is below 1.
        """
        if not groups or batch_size < 1:
            raise ValueError("BatchSource: groups must be given, and batch_size be at least 1")
        self._groups = groups
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._order: tuple[int, list[int]] | None = None
        self.num_batches = -(-len(groups) // batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        """Return one batch.

        Args:
            epoch: From 0.
            index: From 0 to num_batches - 1.

        Returns:
            The batch.

        Raises:
            IndexError: There is no such batch.
        """
        if not 0 <= index < self.num_batches:
            raise IndexError(f"BatchSource: batch {index} of {self.num_batches}")
        order = self._order_of(epoch)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        return collate([sample for group in chosen for sample in self._groups[group]])

    def _order_of(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._groups)))
        if self._order is None or self._order[0] != epoch:
            order = list(range(len(self._groups)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
