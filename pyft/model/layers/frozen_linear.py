"""A linear layer whose weight does not train, in the words in which an adapter asks for it.

frozen_weight      what pyft's operations multiply with: a dense tensor, or the parts of an NF4 weight
dense_weight()     the same weight [N, K] as a plain tensor
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from pyft.ops.nf4 import NF4Weight


class FrozenLinear(Protocol):
    """What every kind of frozen linear layer answers; a module."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @property
    def frozen_weight(self) -> Tensor | NF4Weight:
        """The weight [N, K] as it is stored."""

    def dense_weight(self) -> Tensor:
        """Return the weight [N, K]: in its dtype where it is stored dense, else float32."""


class DenseLinear(nn.Linear):
    """A dense linear layer under an adapter; weight and bias are those of the layer it stands for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    @property
    def frozen_weight(self) -> Tensor:
        """The weight [N, K]."""
        return self.weight

    def dense_weight(self) -> Tensor:
        """Return the weight [N, K] in its dtype."""
        return self.weight.detach()


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module answers as a FrozenLinear."""
    return hasattr(type(module), "frozen_weight")


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, in whatever form its weight is stored."""
    return isinstance(module, nn.Linear) or is_frozen(module)


def frozen(module: nn.Module) -> FrozenLinear:
    """Return a linear layer as one that answers."""
    return module if is_frozen(module) else DenseLinear(module)
