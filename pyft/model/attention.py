"""Attention over rows that hold several samples, through transformers' public attention interface.

A batch is one flat row [1, T] of S samples side by side; `cu_seq_lens_q` [S + 1] says where each begins:

    tokens   a a a a b b c c c        cu_seq_lens_q = [0, 4, 6, 9]
    a attends to a alone, b to b, c to c, each causally:   softmax(scale * Q K^T + causal) V   per sample

Without `cu_seq_lens_q` the call is one sample, with or without a key-value cache (generation). On CUDA in
bfloat16 or float16 torch's varlen attention takes all samples in one launch; everything else runs torch's
scaled_dot_product_attention sample by sample, in float32 where a processor would train in bfloat16 without
having its arithmetic. Grouped key-value heads are expanded. Sliding windows and Gemma-2's soft cap are
honoured; padding, custom masks, attention sinks and position biases are refused.

Shapes: T tokens of the row, H query heads, G key-value heads, D head size, L tokens of one sample.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "pyft_packed"

# Keywords by which some architectures ask for attention that this function does not compute.
_REFUSED = {"s_aux": "attention sinks", "position_bias": "a position bias", "block_table": "a paged cache"}


def register_packed_attention() -> str:
    """Register the packed attention with transformers; harmless when repeated.

    Returns:
        The name to pass as `attn_implementation`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def open_mask(num_tokens: int, device: torch.device) -> Tensor:
    """Make the mask [1, T] that hides nothing, known as such without asking the device."""
    # Without a mask transformers looks in the positions for packed samples, and waits for the answer.
    mask = torch.ones(1, num_tokens, dtype=torch.bool, device=device)
    mask.hides_nothing = True
    return mask


def _no_mask(
    *_args: object, attention_mask: Tensor | None = None, use_vmap: bool = False, **_kwargs: object
) -> None:
    """Stand in for mask building: the attention below is causal per sample, so no mask tensor exists."""
    if use_vmap:
        raise ValueError(f"{NAME}: this architecture overlays its own attention mask, which is not supported")
    if attention_mask is None or getattr(attention_mask, "hides_nothing", False):
        return
    if not bool(attention_mask.all()):
        raise ValueError(f"{NAME}: attention_mask has padding; pass samples side by side in one row instead")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each sample of the row; transformers calls it from every attention layer.

    Args:
        module: the attention layer (asked only whether it is causal).
        query: [B, H, T, D]; B is 1 when `cu_seq_lens_q` is given.
        key: [B, G, T_kv, D], T_kv >= T with a cache.
        value: [B, G, T_kv, D_v].
        attention_mask: always None; anything else is refused.
        dropout: probability, already 0 outside training.
        scaling: factor on Q K^T, default 1 / sqrt(D).
        sliding_window: a token sees itself and the sliding_window - 1 tokens before it; None sees all.
        softcap: scores become softcap * tanh(scores / softcap).
        is_causal: False is refused.
        cu_seq_lens_q: int32 [S + 1], starts of the samples and the end of the row.
        cu_seq_lens_k: the same on the CPU, where they are read without waiting for a GPU.
        max_length_q: tokens of the longest sample, for the CUDA kernel.
        **kwargs: what else the architecture passes; a keyword that would change the result is refused.

    Returns:
        [B, T, H, D_v] contiguous, and None in place of attention weights.

    Raises:
        ValueError: when the architecture asks for attention this function does not compute.
    """
    if attention_mask is not None:
        raise ValueError(
            f"{NAME}: got an attention mask of shape {tuple(attention_mask.shape)}, expects none"
        )
    for keyword, what in _REFUSED.items():
        if kwargs.get(keyword) is not None:
            raise ValueError(
                f"{NAME}: {type(module).__name__} needs {what} ({keyword}), which is not supported"
            )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal:
        raise ValueError(
            f"{NAME}: {type(module).__name__} attends in both directions; only causal models train here"
        )

    dtype = query.dtype
    if _needs_float32(query):
        query, key, value = query.float(), key.float(), value.float()
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if cu_seq_lens_q is None:
        out = _attend(query, key, value, scale, sliding_window, softcap, dropout)
        return out.transpose(1, 2).to(dtype).contiguous(), None

    if _varlen_applies(query, value, softcap, dropout):
        return _varlen(query, key, value, scale, sliding_window, cu_seq_lens_q, max_length_q), None
    samples = [
        _attend(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            scale,
            sliding_window,
            softcap,
            dropout,
        )
        for start, end in pairwise((cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k).tolist())
    ]
    return torch.cat(samples, dim=2).transpose(1, 2).to(dtype).contiguous(), None


def _needs_float32(query: Tensor) -> bool:
    """Say whether torch's backward in bfloat16 would be emulated: seven times slower than float32's."""
    if query.is_cuda or query.dtype != torch.bfloat16 or not query.requires_grad:
        return False
    has = torch.cpu.get_capabilities().get
    return not (has("avx512_bf16") or has("amx_bf16") or has("bf16"))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Causal attention of one sample: query [B, H, L, D] are the last L of the L_kv key positions."""
    length, kv_length = query.shape[2], key.shape[2]
    windowed = window is not None and kv_length > window
    if softcap is None and not windowed and length in (1, kv_length):
        # One new token sees the whole cache; a sample alone is plainly causal. Both avoid a mask tensor.
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scale, is_causal=length > 1 and length == kv_length
        )
    rows = torch.arange(kv_length - length, kv_length, device=query.device)[:, None]
    columns = torch.arange(kv_length, device=query.device)[None, :]
    visible = columns <= rows
    if windowed:
        visible &= columns > rows - window
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout, scale=scale
        )
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(F.dropout(weights, dropout, training=dropout > 0), value)


def _varlen_applies(query: Tensor, value: Tensor, softcap: float | None, dropout: float) -> bool:
    """Say whether torch's varlen kernel computes this call: CUDA, half precision, no cap, no dropout."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and dropout == 0.0
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    cu_seqlens: Tensor,
    max_length: int | None,
) -> Tensor:
    """All samples in one launch of torch's varlen attention; [1, H, T, D] in, [1, T, H, D] out."""
    from torch.nn.attention.varlen import varlen_attn

    # The longest is known to the caller beforehand, so that no launch waits for the device.
    cu_seqlens = cu_seqlens.to(device=query.device, dtype=torch.int32)
    longest = max_length if max_length is not None else int(cu_seqlens.diff().max())
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    # (-1, 0): everything to the left, nothing to the right. The default of the kernel is not causal.
    reach = (-1 if window is None else window - 1, 0)
    out = varlen_attn(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=reach
    )
    return out[None]
