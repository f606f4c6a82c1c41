"""NF4: a weight in 4 bits, and the linear layer that multiplies with it as it lies.

    quantise     absmax[b] = max |w| over block b of 64,  code[i] = nearest codebook entry of w[i] / absmax[b]
    dequantise   w[i] = codebook[code[i]] * absmax[i // 64], in float32, then rounded to the wanted dtype
    linear       y = x W^T + bias,   dX = dY W,   W rounded to x's dtype or finer, sums in float32

The storage is bitsandbytes' to the bit (csrc/include/pyft/nf4_format.h draws it). Left out: NF4 weights that
are trained, blocks other than 64, FP4.

Shapes: N out-features, K in-features, B = ceil(N * K / 64) blocks, C = ceil(B / 256).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.nf4 import linear_backward_on_cuda, linear_on_cuda
from pyft.ops.native import C, execution
from pyft.ops.operation import Operation
from pyft.ops.signatures import NF4LinearArguments, NF4LinearBackwardArguments

BLOCK_SIZE: int = C.nf4_block_size
NESTED_BLOCK_SIZE: int = C.nested_block_size


class NF4Weight(NamedTuple):
    """A weight [N, K] in NF4. Either `absmax` or the three nested parts are present.

    Attributes:
        codes: uint8 [ceil(N * K / 2)], two codes a byte, the even element in the high nibble.
        absmax: float32 [B], or None when it is quantised itself.
        absmax_codes: uint8 [B] or None.
        nested_absmax: float32 [C] or None.
        offset: float32 scalar or None; absmax[b] = map[absmax_codes[b]] * nested_absmax[b // 256] + offset.
        shape: (N, K).
    """

    codes: Tensor
    absmax: Tensor | None
    absmax_codes: Tensor | None
    nested_absmax: Tensor | None
    offset: Tensor | None
    shape: tuple[int, int]

    @property
    def parts(self) -> list[Tensor | None]:
        """The five tensors."""
        return list(self[:5])


def nf4_quantize(weight: Tensor, *, double_quant: bool = True) -> NF4Weight:
    """Quantise a weight to NF4.

    Args:
        weight: float32 or bfloat16 [N, K].
        double_quant: store absmax in 8 bits, centred on its mean.

    Returns:
        The quantised weight, on the same device.

    Raises:
        ValueError: for another dtype or number of dimensions.
    """
    if weight.dim() != 2:
        raise ValueError(f"nf4_quantize: weight has shape {list(weight.shape)}, expected [N, K]")
    shape = (weight.shape[0], weight.shape[1])
    codes, absmax = _QUANTIZE(QuantizeArguments(weight.detach()))
    if not double_quant:
        return NF4Weight(codes, absmax, None, None, None, shape)
    return NF4Weight(codes, None, *nf4_quantize_absmax(absmax), shape)


def nf4_quantize_absmax(absmax: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the scales of a weight to 8 bits, in blocks of 256: the second quantisation.

    Args:
        absmax: float32 [B].
        offset: float32 scalar to centre on; None for the mean, taken in float64.

    Returns:
        absmax_codes uint8 [B], nested_absmax float32 [C], and the offset, float32 scalar.
    """
    return tuple(_QUANTIZE_ABSMAX(QuantizeAbsmaxArguments(absmax, offset)))


def nf4_dequantize(weight: NF4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rebuild the dense weight.

    Args:
        weight: the quantised weight.
        dtype: float32 or bfloat16.

    Returns:
        [N, K] in `dtype`. Another dtype, or storage that does not fit the shape, is a ValueError.
    """
    return _DEQUANTIZE(DequantizeArguments(weight.parts, weight.shape, dtype))


def nf4_linear(x: Tensor, weight: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply with a quantised weight: y = x W^T + bias, differentiable in x and bias.

    Args:
        x: float32 or bfloat16 [..., K].
        weight: [N, K], frozen.
        bias: x's dtype [N], or None.

    Returns:
        [..., N] in x's dtype. Shapes or dtypes that do not fit are a ValueError that names the argument.
    """
    return _LINEAR(NF4LinearArguments(x, weight.parts, weight.shape, bias))


def nf4_from_bitsandbytes(
    packed: Tensor,
    absmax: Tensor,
    shape: Sequence[int],
    *,
    nested_absmax: Tensor | None = None,
    nested_map: Tensor | None = None,
    offset: Tensor | None = None,
) -> NF4Weight:
    """Take over a weight as bitsandbytes stores it, without copying.

    Args:
        packed: uint8, the packed codes in any shape.
        absmax: float32 [B], or uint8 [B] when it is nested.
        shape: (N, K).
        nested_absmax: float32 [C]; `quant_state.state2.absmax`.
        nested_map: float32 [256]; `quant_state.state2.code`.
        offset: float32 scalar; `quant_state.offset`.

    Returns:
        The same weight.

    Raises:
        ValueError: if it has other block sizes or another nested map than NF4 has here.
    """
    shape = (int(shape[0]), int(shape[1]))
    num_weights = shape[0] * shape[1]
    num_blocks = -(-num_weights // BLOCK_SIZE)
    for name, tensor, expected in (
        ("packed", packed, -(-num_weights // 2)),
        ("absmax", absmax, num_blocks),
        ("nested_absmax", nested_absmax, -(-num_blocks // NESTED_BLOCK_SIZE)),
    ):
        if tensor is not None and tensor.numel() != expected:
            raise ValueError(
                f"nf4_from_bitsandbytes: {name} has {tensor.numel()} elements, a weight {list(shape)} in"
                f" blocks of {BLOCK_SIZE} and {NESTED_BLOCK_SIZE} has {expected}"
            )
    codes = packed.reshape(-1)
    if nested_absmax is None:
        return NF4Weight(codes, absmax, None, None, None, shape)
    if offset is None or nested_map is None:
        raise ValueError("nf4_from_bitsandbytes: a nested absmax needs nested_map and offset")
    if not torch.equal(nested_map.cpu().float(), torch.tensor(C.dynamic_map())):
        raise ValueError("nf4_from_bitsandbytes: nested_map is not the signed 8-bit dynamic map")
    return NF4Weight(codes, None, absmax, nested_absmax, offset, shape)


# ---- what torch knows of it ------------------------------------------------------------------------------


class QuantizeArguments(NamedTuple):
    weight: Tensor


class Quantized(NamedTuple):
    codes: Tensor
    absmax: Tensor


class QuantizeAbsmaxArguments(NamedTuple):
    absmax: Tensor
    given_offset: Tensor | None


class QuantizedAbsmax(NamedTuple):
    absmax_codes: Tensor
    nested_absmax: Tensor
    offset: Tensor


class DequantizeArguments(NamedTuple):
    weight: list[Tensor | None]  # NF4Weight.parts, here and below
    shape: list[int]  # N, K
    dtype: torch.dtype


def _empty_codes(arguments: QuantizeArguments) -> Quantized:
    num_weights, device = arguments.weight.numel(), arguments.weight.device
    return Quantized(
        torch.empty(-(-num_weights // 2), dtype=torch.uint8, device=device),
        torch.empty(-(-num_weights // BLOCK_SIZE), dtype=torch.float32, device=device),
    )


def _quantize(arguments: QuantizeArguments) -> Quantized:
    result = _empty_codes(arguments)
    C.nf4_quantize(weight=arguments.weight.contiguous(), **result._asdict(), **execution(arguments.weight))
    return result


def _empty_absmax_codes(arguments: QuantizeAbsmaxArguments) -> QuantizedAbsmax:
    absmax, num_blocks = arguments.absmax, arguments.absmax.numel()
    return QuantizedAbsmax(
        torch.empty(num_blocks, dtype=torch.uint8, device=absmax.device),
        absmax.new_empty(-(-num_blocks // NESTED_BLOCK_SIZE)),
        absmax.new_empty(()),
    )


def _quantize_absmax(arguments: QuantizeAbsmaxArguments) -> QuantizedAbsmax:
    absmax, result = arguments.absmax.contiguous(), _empty_absmax_codes(arguments)
    C.nf4_quantize_absmax(
        absmax=absmax, given_offset=arguments.given_offset, **result._asdict(), **execution(absmax)
    )
    return result


def _empty_dense(arguments: DequantizeArguments) -> Tensor:
    return torch.empty(arguments.shape, dtype=arguments.dtype, device=arguments.weight[0].device)


def _dequantize(arguments: DequantizeArguments) -> Tensor:
    out = _empty_dense(arguments)
    C.nf4_dequantize(weight=nf4_parts(arguments.weight, arguments.shape), out=out, **execution(out))
    return out


def _empty_y(arguments: NF4LinearArguments) -> Tensor:
    return arguments.x.new_empty((*arguments.x.shape[:-1], arguments.shape[0]))


def _linear(arguments: NF4LinearArguments) -> Tensor:
    if arguments.x.dim() == 0:
        raise ValueError("nf4_linear: x has shape [], expected [..., K]")
    y = _empty_y(arguments)
    C.nf4_linear(
        x=matrix(arguments.x),
        weight=nf4_parts(arguments.weight, arguments.shape),
        bias=None if arguments.bias is None else arguments.bias.contiguous(),
        y=matrix(y),
        **execution(y),
    )
    return y


def _empty_grad_x(arguments: NF4LinearBackwardArguments) -> Tensor:
    return arguments.grad_y.new_empty((*arguments.grad_y.shape[:-1], arguments.shape[1]))


def _linear_backward(arguments: NF4LinearBackwardArguments) -> Tensor:
    grad_x = _empty_grad_x(arguments)
    C.nf4_linear_backward(
        grad_y=matrix(arguments.grad_y),
        weight=nf4_parts(arguments.weight, arguments.shape),
        grad_x=matrix(grad_x),
        **execution(grad_x),
    )
    return grad_x


def _linear_gradients(kept: SimpleNamespace, wanted: set[str], grad_y: Tensor) -> dict[str, Tensor]:
    found = {}
    if "x" in wanted:
        found["x"] = _LINEAR_BACKWARD(NF4LinearBackwardArguments(grad_y, kept.weight, kept.shape))
    if "bias" in wanted:
        found["bias"] = matrix(grad_y).sum(dim=0)
    return found


def _linear_backward_gradients(
    kept: SimpleNamespace, wanted: set[str], grad_grad_x: Tensor
) -> dict[str, Tensor]:
    """The backward is linear in dY, its gradient is the forward again."""
    return {"grad_y": _LINEAR(NF4LinearArguments(grad_grad_x, kept.weight, kept.shape, None))}


_QUANTIZE = Operation("nf4_quantize", QuantizeArguments, _empty_codes, cpu=_quantize, cuda=_quantize)
_QUANTIZE_ABSMAX = Operation(
    "nf4_quantize_absmax",
    QuantizeAbsmaxArguments,
    _empty_absmax_codes,
    cpu=_quantize_absmax,
    cuda=_quantize_absmax,
)
_DEQUANTIZE = Operation(
    "nf4_dequantize", DequantizeArguments, _empty_dense, cpu=_dequantize, cuda=_dequantize
)
_LINEAR_BACKWARD = Operation(
    "nf4_linear_backward",
    NF4LinearBackwardArguments,
    _empty_grad_x,
    cpu=_linear_backward,
    cuda=linear_backward_on_cuda,
    gradients=_linear_backward_gradients,
    keeps=("weight",),
    twice=True,
)
_LINEAR = Operation(
    "nf4_linear",
    NF4LinearArguments,
    _empty_y,
    cpu=_linear,
    cuda=linear_on_cuda,
    gradients=_linear_gradients,
    keeps=("weight",),
    twice=True,
)
