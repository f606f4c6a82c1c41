"""The cross-entropy of logits on a GPU: one kernel for the rows, one that adds them up in a fixed order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyft.ops.native import C, execution


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2:
        raise ValueError(f"cross_entropy: logits has shape {list(logits.shape)}, expected [T, V]")
    num_rows, options = logits.shape[0], {"dtype": torch.float32, "device": logits.device}
    loss, row_stats = torch.empty((), **options), torch.empty((num_rows, 2), **options)
    C.cross_entropy(
        logits=logits.contiguous(),
        targets=targets.contiguous(),
        loss=loss,
        row_stats=row_stats,
        row_losses=torch.empty(num_rows, **options),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        **execution(logits),
    )
    return loss, row_stats


ON_CUDA: dict[str, Callable] = {"cross_entropy": _cross_entropy}
