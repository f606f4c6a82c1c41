"""Where the trainer takes its batches from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch


class Batches(Protocol):
    """Batches as a pure function of (epoch, index), so that a position in the data is two numbers."""

    num_batches: int

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch `index` (from 0, below `num_batches`) of epoch `epoch` (from 0)."""
        ...
