"""The order of batches, a pure function of epoch and index.

packed     packs in a seeded order of each epoch, batch_size of them in a batch
unpacked   samples in a seeded order, but of similar length within a batch: stretches of 50 batches are
           sorted by length, then the batches are shuffled; the batch with the longest sample of all comes
           first, so that a run that does not fit into memory fails at its first step
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pyft.data.batches.collate import Batch, collate
from pyft.data.encode.sample import Sample

_BATCHES_SORTED_TOGETHER = 50


class OrderedBatches:
    """Batches by (epoch, index), a pure function: resuming needs no more state than these two numbers."""

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        shuffle: bool,
        *,
        packs: Sequence[Sequence[int]] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Plan the batches; no sample is read yet.

        A batch has `batch_size` samples or, with `packs` (the indices of the samples in each), packs; the
        last of an epoch may have fewer. `lengths` are the samples' tokens, to batch those of similar length.
        """
        self._num_groups = len(samples) if packs is None else len(packs)
        if not self._num_groups or batch_size < 1:
            raise ValueError("OrderedBatches: samples must be given, and batch_size be at least 1")
        self.samples, self._packs = samples, packs
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._lengths = lengths if batch_size > 1 else None
        self._order: tuple[int, list[int]] | None = None
        self.num_batches = -(-self._num_groups // batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch `index`, from 0 to num_batches - 1, of epoch `epoch`, from 0."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"OrderedBatches: batch {index} of {self.num_batches}")
        order = self._order_of(epoch)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        if self._packs is not None:
            chosen = [member for pack in chosen for member in self._packs[pack]]
        return collate([self.samples[member] for member in chosen])

    def _order_of(self, epoch: int) -> list[int]:
        if self._order is None or (self._shuffle and self._order[0] != epoch):
            order = list(range(self._num_groups))
            rng = random.Random(f"{self._seed}/{epoch}")
            if self._shuffle:
                rng.shuffle(order)
            if self._lengths is not None:
                order = self._by_length(order, rng)
            self._order = (epoch, order)
        return self._order[1]

    def _by_length(self, order: list[int], rng: random.Random) -> list[int]:
        lengths, size = self._lengths, self._batch_size
        assert lengths is not None
        stretch = _BATCHES_SORTED_TOGETHER * size if self._shuffle else len(order)
        batches: list[list[int]] = []
        for first in range(0, len(order), stretch):
            alike = sorted(order[first : first + stretch], key=lambda index: -lengths[index])
            batches += [alike[at : at + size] for at in range(0, len(alike), size)]
        # A smaller batch has to stay last, as batch() cuts the order into equal pieces.
        last = batches.pop() if len(batches[-1]) < size else []
        if self._shuffle:
            rng.shuffle(batches)
        if batches:
            first = max(range(len(batches)), key=lambda index: lengths[batches[index][0]])
            batches.insert(0, batches.pop(first))
        return [index for batch in [*batches, last] for index in batch]
