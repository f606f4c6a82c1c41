"""Every operation of `pyft.ops` once more in plain torch; `tolerance` has the rule that compares the two.

For tests, benches and whoever wants to read what an operation means. Slow, stores everything (all logits,
the whole dense weight, the dropout mask), differentiable by autograd, and as exact as the dtype it is given:
called with float64 tensors it is the reference, with the operation's own dtype it is the error to expect.
Nothing here is ever picked silently in place of a kernel.

Shapes: T tokens, K in-features, N out-features, R rank, V vocabulary.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pyft.ops.nf4 import NF4Weight

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256

# Quantiles of a standard normal scaled to [-1, 1], one of them exactly 0 (QLoRA, appendix E).
NF4_CODEBOOK = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@functools.cache
def nested_codebook() -> Tensor:
    """The 256 values an 8-bit absmax may take (Dettmers' signed dynamic map: 7 exponents, then fraction).

    Returns:
        Float32 [256], ascending.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        scaled = (10 ** (exponent - 6)) * means
        values += scaled.tolist() + (-scaled).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def _quantize_blocks(
    flat: Tensor, codebook: Tensor, block_size: int, num_steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the nearest codebook entry of each value over its block's largest magnitude.

    `flat` is float32 [n]; `num_steps` first rounds to so many equal steps over [-1, 1]. Indices are
    uint8 [n], scales float32 [ceil(n / block_size)].
    """
    num_blocks = -(-flat.numel() // block_size)
    padded = F.pad(flat, (0, num_blocks * block_size - flat.numel())).view(num_blocks, block_size)
    absmax = padded.abs().amax(dim=1) if num_blocks else flat.new_zeros(0)
    scaled = (padded * (1.0 / absmax.clamp(min=1e-38)).unsqueeze(1)).clamp(-1, 1)
    if num_steps is not None:
        scaled = (((scaled + 1) * 0.5) * num_steps + 0.5).floor() / num_steps * 2 - 1
    middles = (codebook[:-1] + codebook[1:]) / 2
    codes = torch.bucketize(scaled.reshape(-1)[: flat.numel()], middles, out_int32=True)
    return codes.to(torch.uint8), absmax


def quantize_absmax(absmax: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise scales to 8 bits, like bitsandbytes' CPU build through a table of 65536 steps over [-1, 1].

    Args:
        absmax: float32 [B].
        offset: float32 scalar, subtracted first.

    Returns:
        absmax_codes uint8 [B] and nested_absmax float32 [ceil(B / 256)].
    """
    codebook = nested_codebook().to(absmax.device)
    return _quantize_blocks(absmax - offset, codebook, NESTED_BLOCK_SIZE, num_steps=65535)


def nf4_quantize(weight: Tensor, *, double_quant: bool = True) -> NF4Weight:
    """Quantise a weight to NF4: code[i] = argmin_c |codebook[c] - w[i] / absmax[i // 64]|.

    Args:
        weight: [N, K], any float dtype; computed in float32, as the format is defined.
        double_quant: store absmax - offset in 8 bits, in blocks of 256.

    Returns:
        The quantised weight.
    """
    codebook = torch.tensor(NF4_CODEBOOK, dtype=torch.float32, device=weight.device)
    codes, absmax = _quantize_blocks(weight.detach().reshape(-1).float(), codebook, BLOCK_SIZE)
    # bitsandbytes pads an odd last nibble with the code of 0.0
    codes = F.pad(codes, (0, codes.numel() % 2), value=7)
    packed = (codes[::2] << 4) | codes[1::2]
    shape = (weight.shape[0], weight.shape[1])
    if not double_quant:
        return NF4Weight(packed, absmax, None, None, None, shape)
    offset = absmax.double().mean().float() if absmax.numel() else absmax.new_zeros(())
    absmax_codes, nested_absmax = quantize_absmax(absmax, offset)
    return NF4Weight(packed, None, absmax_codes, nested_absmax, offset, shape)


def nf4_dequantize(weight: NF4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rebuild the dense weight: w[i] = codebook[code[i]] * absmax[i // 64] in float32, then to dtype.

    Args:
        weight: the quantised weight.
        dtype: dtype of the result.

    Returns:
        [N, K] in `dtype`.
    """
    codebook = torch.tensor(NF4_CODEBOOK, dtype=torch.float32, device=weight.codes.device)
    num_values = weight.shape[0] * weight.shape[1]
    codes = torch.stack([weight.codes >> 4, weight.codes & 15], dim=1).reshape(-1)[:num_values].long()
    absmax = weight.absmax
    if absmax is None:
        nested = nested_codebook().to(weight.codes.device)[weight.absmax_codes.long()]
        scale = weight.nested_absmax.repeat_interleave(NESTED_BLOCK_SIZE)[: nested.numel()]
        absmax = nested * scale + weight.offset
    scales = absmax.repeat_interleave(BLOCK_SIZE)[:num_values]
    return (codebook[codes] * scales).view(weight.shape).to(dtype)


def _dense(weight: Tensor | NF4Weight, dtype: torch.dtype) -> Tensor:
    return nf4_dequantize(weight, dtype) if isinstance(weight, NF4Weight) else weight.to(dtype)


def nf4_linear(x: Tensor, weight: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply with a quantised weight: y = x W^T + bias, W rounded to x.dtype.

    Args:
        x: [..., K].
        weight: [N, K], quantised.
        bias: [N] or None.

    Returns:
        [..., N] in x.dtype.
    """
    return F.linear(x, _dense(weight, x.dtype), None if bias is None else bias.to(x.dtype))


def lora_linear(
    x: Tensor,
    weight: Tensor | NF4Weight,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A linear layer with a low-rank addition: y = x W^T + bias + scaling * drop(x) A^T B^T.

    drop(x) = mask * x / (1 - dropout)

    Args:
        x: [..., K].
        weight: [N, K], dense or NF4.
        lora_A: [R, K].
        lora_B: [N, R].
        scaling: factor of the addition, alpha / R.
        dropout: probability that an entry of x is dropped from the addition's input.
        mask: [..., K], true where an entry is kept; None keeps all.
        bias: [N] or None.

    Returns:
        [..., N] in x.dtype.
    """
    base = (
        nf4_linear(x, weight, bias)
        if isinstance(weight, NF4Weight)
        else F.linear(x, weight.to(x.dtype), bias)
    )
    wide = torch.promote_types(x.dtype, lora_A.dtype)
    kept = x.to(wide)
    if mask is not None:
        kept = kept * mask.to(wide) / (1.0 - dropout)
    addition = F.linear(F.linear(kept, lora_A.to(wide)), lora_B.to(wide)) * scaling
    return (base.to(wide) + addition).to(x.dtype)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum over counted rows of torch's cross-entropy + z_loss * log(sum_v exp(logits[t, v]))^2.

    Args:
        logits: [T, V]; half precision is widened to float32 first.
        targets: [T] int64; rows equal to `ignore_index` do not count.
        ignore_index: the value that marks a row without a target.
        label_smoothing: torch's.
        z_loss: coefficient of the squared log-sum-exp.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(
        wide, targets, reduction="sum", ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    return loss + z_loss * wide[targets != ignore_index].logsumexp(1).square().sum()


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    **options: float,
) -> Tensor:
    """Cross-entropy of the logits cap(logit_scale (hidden head_weight^T + bias)), all of them stored.

    Args:
        hidden: [T, K].
        head_weight: [V, K].
        targets: [T] int64; rows equal to `ignore_index` do not count.
        bias: [V] or None.
        logit_scale: factor of the logits.
        logit_softcap: cap(l) = logit_softcap tanh(l / logit_softcap); None leaves l.
        **options: those of `cross_entropy`.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    logits = F.linear(hidden, head_weight.to(hidden.dtype), bias) * logit_scale
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    return cross_entropy(logits, targets, **options)


def _widened(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Rows over their root mean square, times weight_offset + weight.

    Args:
        x: [..., K]; half precision is widened to float32 first.
        weight: [K].
        eps: added to the mean square.
        weight_offset: added to the weight.

    Returns:
        [..., K] in x.dtype.
    """
    wide = _widened(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * (_widened(weight) + weight_offset)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) * up.

    Args:
        gate: any shape; half precision is widened to float32 first.
        up: the same.

    Returns:
        The same shape and dtype.
    """
    return (F.silu(_widened(gate)) * _widened(up)).to(gate.dtype)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first R entries of every head: x cos + rotate_half(x) sin.

    Args:
        q: [B, H, T, D]; half precision is widened to float32 first.
        k: [B, G, T, D].
        cos: [B, T, R] or [1, T, R].
        sin: like cos.

    Returns:
        q and k, rotated.
    """
    width = cos.shape[-1]
    wide_cos, wide_sin = _widened(cos)[:, None], _widened(sin)[:, None]

    def rotate(x: Tensor) -> Tensor:
        wide = _widened(x)
        turned, rest = wide[..., :width], wide[..., width:]
        low, high = turned.chunk(2, dim=-1)
        turned = turned * wide_cos + torch.cat((-high, low), dim=-1) * wide_sin
        return torch.cat((turned, rest), dim=-1).to(x.dtype)

    return rotate(q), rotate(k)
