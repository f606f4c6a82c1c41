"""A linear layer with an NF4 weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_linear, nf4_quantize

_PARTS = ("codes", "absmax", "absmax_codes", "nested_absmax", "offset")


class NF4Linear(nn.Module):
    """Linear layer with a frozen NF4 weight [N, K] and an optional bias [N].

    Args:
        in_features: K.
        out_features: N.
        bias: a bias parameter, or None.
        double_quant: store absmax itself in 8 bits.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None = None,
        *,
        double_quant: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.double_quant = double_quant
        self.register_parameter("bias", bias)
        for part in _PARTS:
            self.register_buffer(part, None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, double_quant: bool = True) -> NF4Linear:
        """Quantise a linear layer; its bias is shared, its weight is left as it is.

        Args:
            linear: the layer; weight [N, K] in float32 or bfloat16.
            double_quant: store absmax itself in 8 bits.

        Returns:
            The quantised layer.
        """
        layer = cls(linear.in_features, linear.out_features, linear.bias, double_quant=double_quant)
        layer.quantize_(linear.weight.detach())
        return layer

    def quantize_(self, weight: Tensor, device: str | torch.device | None = None) -> None:
        """Quantise a dense weight into this layer.

        Args:
            weight: [N, K], float32 or bfloat16.
            device: where the parts go; None leaves them where the weight is.

        Raises:
            ValueError: when the shape is not [N, K].
        """
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"NF4Linear: weight.shape is {tuple(weight.shape)}, layer expects "
                f"{(self.out_features, self.in_features)}"
            )
        quantized = nf4_quantize(weight.contiguous(), double_quant=self.double_quant)
        for part in _PARTS:
            tensor = getattr(quantized, part)
            setattr(self, part, tensor if tensor is None or device is None else tensor.to(device))

    @property
    def weight_nf4(self) -> NF4Weight:
        """The stored weight, as the operations take it."""
        parts = {part: getattr(self, part) for part in _PARTS}
        return NF4Weight(**parts, shape=(self.out_features, self.in_features))

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rebuild the dense weight.

        Args:
            dtype: of the result.

        Returns:
            [N, K].
        """
        return nf4_dequantize(self.weight_nf4, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: [..., K], float32 or bfloat16.

        Returns:
            [..., N] in x's dtype.
        """
        return nf4_linear(x, self.weight_nf4, self.bias)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # `model.to(bfloat16)` or `.float()` must not touch the float32 scales: they are storage, not
        # activations.
        kept = {part: getattr(self, part) for part in _PARTS if getattr(self, part) is not None}
        super()._apply(fn, recurse)
        for part, before in kept.items():
            after = getattr(self, part)
            if after.dtype != before.dtype:
                setattr(self, part, before.to(after.device))
        return self

    def extra_repr(self) -> str:
        """Say shape and storage."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, double_quant={self.double_quant}"
        )
