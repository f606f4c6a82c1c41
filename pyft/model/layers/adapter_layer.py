"""What an adapter type is to those who attach, merge, save and load it: one class, in one file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyft.model.layers.frozen_linear import FrozenLinear


class AdapterLayer(nn.Module, ABC):
    """A frozen linear layer [N, K] and an update of it that trains.

    A type defines `forward`, and below: how its settings are read, where its values begin, what it merges to,
    and how PEFT calls its tensors and settings. Its own tensors are float32 masters: moving the model moves
    them, casting it is refused.
    """

    def __init__(self, base: FrozenLinear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features

    @classmethod
    @abstractmethod
    def options(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Take the constructor's arguments out of settings by PEFT's names, a recipe's or a saved adapter's.

        A setting that asks for what this type does not compute is a ValueError.
        """

    @abstractmethod
    def draw_(self, generator: torch.Generator) -> None:
        """Give the update its initial values, drawn on the CPU: every device starts from the same ones."""

    @abstractmethod
    def merged_weight(self) -> Tensor:
        """Return the weight [N, K] with the update in it, in the dtype of `base.dense_weight()`."""

    @abstractmethod
    def peft_tensors(self) -> dict[str, nn.Parameter]:
        """Return what trains, under the names that PEFT gives it behind the layer's own."""

    @abstractmethod
    def peft_config(self, base_model: str | None, target_modules: Sequence[str]) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json for layers such as this one."""

    @property
    def weight(self) -> Tensor:
        """The frozen dense weight, for architectures that look at it."""
        return self.base.weight

    def merged(self) -> nn.Linear:
        """Return a dense linear layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.merged_weight()), self.base.bias
        return linear.train(self.training)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        if any(parameter.dtype != torch.float32 for parameter in self.peft_tensors().values()):
            raise TypeError("adapters stay float32: cast the base model before they are attached")
        return self
