"""Optimizers: each changes float32 weights by their gradients. AdamW is the first.

Which weights, how gradients are clipped, what becomes of narrower parameters: `parameters`. Left out: 8-bit
and paged states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from pyft.trainer.settings import TrainSettings


class Optimizer(Protocol):
    """What the trainer asks of an optimizer. `name` is written into checkpoints, and compared on resuming."""

    name: ClassVar[str]

    def __init__(self, weights: Mapping[str, Tensor], settings: TrainSettings) -> None:
        """Take the weights by name, in an order that stays."""
        ...

    @property
    def state_bytes(self) -> int:
        """About the size of the state once every weight has been changed."""
        ...

    def step(self, learning_rate: float) -> None:
        """Change every weight that has a gradient, without waiting for the device."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the state as it is, each tensor named `<kind>/<weight>`."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned; the tensors are on the CPU, and may be kept."""
        ...


class AdamW:
    """torch's AdamW. Weight decay spares vectors (biases, norms), as transformers does."""

    name = "AdamW"

    def __init__(self, weights: Mapping[str, Tensor], settings: TrainSettings) -> None:
        self._weights = weights
        decays = {True: settings.weight_decay, False: 0.0}
        groups = [
            {"params": [w for w in weights.values() if (w.ndim >= 2) == is_matrix], "weight_decay": decay}
            for is_matrix, decay in decays.items()
        ]
        # fused: one kernel, the same on each machine of a kind, no temporary the size of all the weights.
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )

    @property
    def state_bytes(self) -> int:
        """The size of both moments."""
        return sum(8 * weight.numel() for weight in self._weights.values())

    def step(self, learning_rate: float) -> None:
        """Change every weight that has a gradient."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Return exp_avg, exp_avg_sq and step of each weight that has been changed."""
        return {
            f"{kind}/{name}": tensor
            for name, weight in self._weights.items()
            for kind, tensor in self._adamw.state.get(weight, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            weight = self._weights[name]
            self._adamw.state[weight][kind] = tensor.to(weight.device)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW}
