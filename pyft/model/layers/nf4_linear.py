"""A linear layer whose weight is stored in 4-bit NF4.

    y = x W^T + b,   W = codebook[codes] * absmax   (blocks of 64 along the flattened weight)

The parts of the weight are parameters that do not train: `.to(device)` and `state_dict()` carry them, FSDP2
shards them, and none changes its dtype with the module. What multiplies is `pyft.ops.nf4`; this module only
holds.
"""

from __future__ import annotations

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
            self.register_parameter(part, None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, double_quant: bool = True) -> NF4Linear:
        """Quantise a linear layer; its bias is shared, its weight [N, K] is left as it is."""
        layer = cls(linear.in_features, linear.out_features, linear.bias, double_quant=double_quant)
        layer.quantize_(linear.weight.detach())
        return layer

    def quantize_(self, weight: Tensor) -> None:
        """Quantise a float32 or bfloat16 weight [N, K] into this layer, on the device where it is."""
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"NF4Linear: weight.shape is {tuple(weight.shape)}, layer expects "
                f"{(self.out_features, self.in_features)}"
            )
        self.hold(nf4_quantize(weight.contiguous(), double_quant=self.double_quant))

    def hold(self, quantized: NF4Weight) -> None:
        """Take over the parts of a quantised weight [N, K]."""
        for part in _PARTS:
            tensor = getattr(quantized, part)
            if tensor is not None:
                # At least one dimension, since FSDP2 shards along it: the offset is a scalar.
                tensor = nn.Parameter(tensor.reshape(-1), requires_grad=False)
            setattr(self, part, tensor)

    @property
    def frozen_weight(self) -> NF4Weight:
        """The stored weight, as the operations take it."""
        parts = {part: getattr(self, part) for part in _PARTS}
        if parts["offset"] is not None:
            parts["offset"] = parts["offset"].reshape(())
        return NF4Weight(**parts, shape=(self.out_features, self.in_features))

    def dense_weight(self) -> Tensor:
        """Rebuild the weight [N, K] in float32."""
        return nf4_dequantize(self.frozen_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., K], float32 or bfloat16; return [..., N] in x's dtype."""
        return nf4_linear(x, self.frozen_weight, self.bias)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # `model.to(bfloat16)` or `.float()` must not touch the float32 scales: they are storage, not
        # activations.
        parts = {id(getattr(self, part)) for part in _PARTS}

        def keep_dtype(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if id(tensor) in parts and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        """Say shape and storage."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, double_quant={self.double_quant}"
        )
