"""Losses and metrics of several batches, added up and divided once; the device is waited for once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyft.tasks.task import Loss


class Totals:
    """Sums and counts by name, `loss` among them."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor | float]] = {"loss": []}
        self.counts: dict[str, int] = {"loss": 0}

    def add(self, loss: Loss) -> None:
        """Add a batch's loss and metrics; what is on a device stays there."""
        for name, (value, count) in add_metrics({"loss": (loss.sum, loss.count)}, loss.metrics).items():
            self._sums.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)
            self.counts[name] = self.counts.get(name, 0) + count

    def fetch(self, **scalars: Tensor) -> dict[str, float]:
        """Return other scalars, then each mean (NaN without a count), from one copy of them all."""
        values = _to_floats([*scalars.values(), *(value for sums in self._sums.values() for value in sums)])
        fetched = {name: next(values) for name in scalars}
        totals = {name: sum(next(values) for _ in sums) for name, sums in self._sums.items()}
        means = {name: total / (self.counts[name] or float("nan")) for name, total in totals.items()}
        return add_metrics(fetched, means)


def add_metrics(fields: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Return fields with metrics behind them, none of which may replace one."""
    if taken := fields.keys() & metrics.keys():
        raise ValueError(f"a metric has the name of another field: {', '.join(sorted(taken))}")
    return {**fields, **metrics}


def _to_floats(values: list[Tensor | float]) -> Iterator[float]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    # float64 holds what the other types do, and adding up on the CPU is in the order of the batches.
    same = [tensor.to(tensors[0].device, torch.float64, non_blocking=True) for tensor in tensors]
    fetched = iter(torch.stack(same).tolist() if same else ())
    return (next(fetched) if isinstance(value, Tensor) else float(value) for value in values)
