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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.nf4 import ON_CUDA
from pyft.ops.native import C, execution

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
    codes, absmax = torch.ops.pyft.nf4_quantize(weight.detach())
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
    return torch.ops.pyft.nf4_quantize_absmax(absmax, offset)


def nf4_dequantize(weight: NF4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rebuild the dense weight.

    Args:
        weight: the quantised weight.
        dtype: float32 or bfloat16.

    Returns:
        [N, K] in `dtype`. Another dtype, or storage that does not fit the shape, is a ValueError.
    """
    return torch.ops.pyft.nf4_dequantize(*weight[:5], *weight.shape, dtype)


def nf4_linear(x: Tensor, weight: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply with a quantised weight: y = x W^T + bias, differentiable in x and bias.

    Args:
        x: float32 or bfloat16 [..., K].
        weight: [N, K], frozen.
        bias: x's dtype [N], or None.

    Returns:
        [..., N] in x's dtype. Shapes or dtypes that do not fit are a ValueError that names the argument.
    """
    return torch.ops.pyft.nf4_linear(x, *weight[:5], *weight.shape, bias)


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


# ---- registration with torch ----------------------------------------------------------------------------

_STORAGE = (
    "Tensor codes, Tensor? absmax, Tensor? absmax_codes, Tensor? nested_absmax, Tensor? offset,"
    " int num_rows, int num_columns"
)
_library = Library("pyft", "FRAGMENT")
_library.define("nf4_quantize(Tensor weight) -> (Tensor codes, Tensor absmax)")
_library.define("nf4_quantize_absmax(Tensor absmax, Tensor? offset) -> (Tensor, Tensor, Tensor)")
_library.define(f"nf4_dequantize({_STORAGE}, ScalarType dtype) -> Tensor")
_library.define(f"nf4_linear(Tensor x, {_STORAGE}, Tensor? bias) -> Tensor")
_library.define(f"nf4_linear_backward(Tensor grad_y, {_STORAGE}) -> Tensor")


def _empty_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    num_weights = weight.numel()
    codes = torch.empty(-(-num_weights // 2), dtype=torch.uint8, device=weight.device)
    return codes, torch.empty(-(-num_weights // BLOCK_SIZE), dtype=torch.float32, device=weight.device)


def _empty_nested(absmax: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    num_nested = -(-absmax.numel() // NESTED_BLOCK_SIZE)
    codes = torch.empty(absmax.numel(), dtype=torch.uint8, device=absmax.device)
    return codes, absmax.new_empty(num_nested), absmax.new_empty(())


def _empty_dense(codes: Tensor, *storage_and_dtype) -> Tensor:
    num_rows, num_columns, dtype = storage_and_dtype[-3:]
    return torch.empty((num_rows, num_columns), dtype=dtype, device=codes.device)


def _empty_y(x: Tensor, *storage_and_bias) -> Tensor:
    return x.new_empty((*x.shape[:-1], storage_and_bias[5]))


def _empty_grad_x(grad_y: Tensor, *storage) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], storage[6]))


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, absmax = _empty_codes(weight)
    C.nf4_quantize(weight=weight.contiguous(), codes=codes, absmax=absmax, **execution(weight))
    return codes, absmax


def _quantize_absmax(absmax: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    absmax = absmax.contiguous()
    codes, nested_absmax, used_offset = _empty_nested(absmax, offset)
    C.nf4_quantize_absmax(
        absmax=absmax,
        given_offset=offset,
        absmax_codes=codes,
        nested_absmax=nested_absmax,
        offset=used_offset,
        **execution(absmax),
    )
    return codes, nested_absmax, used_offset


def _dequantize(codes: Tensor, *storage_and_dtype) -> Tensor:
    out = _empty_dense(codes, *storage_and_dtype)
    C.nf4_dequantize(weight=nf4_parts((codes, *storage_and_dtype)), out=out, **execution(codes))
    return out


def _linear(x: Tensor, *storage_and_bias) -> Tensor:
    if x.dim() == 0:
        raise ValueError("nf4_linear: x has shape [], expected [..., K]")
    y = _empty_y(x, *storage_and_bias)
    bias = storage_and_bias[7]
    C.nf4_linear(
        x=matrix(x),
        weight=nf4_parts(storage_and_bias),
        bias=None if bias is None else bias.contiguous(),
        y=matrix(y),
        **execution(x),
    )
    return y


def _linear_backward(grad_y: Tensor, *storage) -> Tensor:
    grad_x = _empty_grad_x(grad_y, *storage)
    C.nf4_linear_backward(
        grad_y=matrix(grad_y), weight=nf4_parts(storage), grad_x=matrix(grad_x), **execution(grad_y)
    )
    return grad_x


def _keep_storage(ctx, inputs, output) -> None:
    tensors, ctx.shape = inputs[1:6], inputs[6:8]
    ctx.present = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))


def _kept_storage(ctx) -> tuple:
    saved = iter(ctx.saved_tensors)
    return (*(next(saved) if present else None for present in ctx.present), *ctx.shape)


def _linear_gradients(ctx, grad_y: Tensor) -> tuple:
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.pyft.nf4_linear_backward(grad_y, *_kept_storage(ctx))
    if ctx.needs_input_grad[8]:
        grad_bias = matrix(grad_y).sum(dim=0)
    return (grad_x, *[None] * 7, grad_bias)


def _linear_backward_gradients(ctx, grad_grad_x: Tensor) -> tuple:
    """The backward is linear in dY, its gradient is the forward again."""
    return (torch.ops.pyft.nf4_linear(grad_grad_x, *_kept_storage(ctx), None), *[None] * 7)


for _name, _run, _fake in (
    ("nf4_quantize", _quantize, _empty_codes),
    ("nf4_quantize_absmax", _quantize_absmax, _empty_nested),
    ("nf4_dequantize", _dequantize, _empty_dense),
    ("nf4_linear", _linear, _empty_y),
    ("nf4_linear_backward", _linear_backward, _empty_grad_x),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, ON_CUDA.get(_name, _run), "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::nf4_linear", _linear_gradients, setup_context=_keep_storage, lib=_library)
register_autograd(
    "pyft::nf4_linear_backward", _linear_backward_gradients, setup_context=_keep_storage, lib=_library
)
