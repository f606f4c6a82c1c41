"""Some of the samples of several stores, in an order of their own; read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyft.data.encode.sample import Sample
from pyft.data.prepared.store import SampleStore


class Selection(Sequence[Sample]):
    """Samples of stores laid end to end, chosen by index.

    `lengths`, `trained` and `targets` int32 [samples]; `rows` int64 [samples], numbered through all stores;
    `digests` uint8 [samples, 16].
    """

    def __init__(self, stores: Sequence[SampleStore], indices: np.ndarray | None = None) -> None:
        """Choose samples by indices counted through all stores; None chooses all, in order."""
        self._stores = stores
        sizes = [len(store) for store in stores]
        self._bounds = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        self._indices = np.arange(self._bounds[-1]) if indices is None else indices
        first_rows = np.concatenate(([0], np.cumsum([len(s.row_digests) for s in stores], dtype=np.int64)))
        self.lengths = self._gather([store.lengths for store in stores])
        self.trained = self._gather([store.trained for store in stores])
        self.targets = self._gather([store.targets for store in stores])
        self.digests = self._gather([store.digests for store in stores])
        self.rows = self._gather([s.rows + first for s, first in zip(stores, first_rows, strict=False)])

    def _gather(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(columns)[self._indices] if columns else np.empty(0, np.int64)

    def take(self, positions: np.ndarray) -> Selection:
        """Choose among the chosen, by indices or bool [samples]."""
        return Selection(self._stores, self._indices[positions])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample."""
        store, position = self._find(index)
        return store[position]

    def source(self, index: int) -> str:
        """Say which row a sample is of: `file:line`, or `file:row`."""
        store, position = self._find(index)
        return store.source(position)

    def cut_text(self, index: int) -> str:
        """Read what was cut off a sample's end, mostly nothing."""
        store, position = self._find(index)
        return store.cut_text(position)

    def _find(self, index: int) -> tuple[SampleStore, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        through_all = int(self._indices[index])
        number = int(np.searchsorted(self._bounds, through_all, side="right")) - 1
        return self._stores[number], through_all - int(self._bounds[number])
