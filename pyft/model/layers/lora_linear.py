"""A linear layer with a low-rank adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyft.model.layers.nf4_linear import NF4Linear
from pyft.ops.lora import lora_linear


class LoRALinear(nn.Module):
    """A frozen linear layer and its low-rank update.

    Args:
        base: dense or NF4 layer; weight [N, K].
        r: rank R.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability of dropping an input of the update, in training only.
    """

    def __init__(
        self, base: nn.Linear | NF4Linear, *, r: int, lora_alpha: float, lora_dropout: float
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.lora_alpha, self.lora_dropout = r, lora_alpha, lora_dropout
        self.scaling = lora_alpha / r
        device = next((t.device for t in [*base.parameters(), *base.buffers()]), torch.device("cpu"))
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))

    @property
    def weight(self) -> Tensor:
        """The frozen dense weight, for architectures that look at it."""
        if isinstance(self.base, NF4Linear):
            raise AttributeError("an NF4 layer has no dense weight")
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: [..., K].

        Returns:
            [..., N] in x's dtype.
        """
        weight = self.base.weight_nf4 if isinstance(self.base, NF4Linear) else self.base.weight
        return lora_linear(
            x,
            weight,
            self.lora_A,
            self.lora_B,
            scaling=self.scaling,
            dropout=self.lora_dropout if self.training else 0.0,
            bias=self.base.bias,
        )

    def merged_weight(self) -> Tensor:
        """Fold the update into the weight: W + scaling * B A, summed in float32.

        Returns:
            [N, K] in the base weight's dtype; float32 for an NF4 base.
        """
        dense = self.base.dequantized() if isinstance(self.base, NF4Linear) else self.base.weight.detach()
        update = self.scaling * (self.lora_B.detach().double() @ self.lora_A.detach().double())
        return (dense.double() + update).to(dense.dtype)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # A and B are float32 masters: moving the model moves them, casting it leaves them.
        super()._apply(fn, recurse)
        for parameter in (self.lora_A, self.lora_B):
            if parameter.dtype != torch.float32:
                raise TypeError("LoRA weights stay float32: cast the base model before adapters are attached")
        return self

    def extra_repr(self) -> str:
        """Say rank and scaling."""
        return f"r={self.r}, scaling={self.scaling}, dropout={self.lora_dropout}"
