"""From a batch to hidden states or logits, through any transformers causal language model.

A batch is anything with input_ids [1, T], position_ids [1, T], cu_seqlens [S + 1] and max_seqlen.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.errors import ConfigError
from pyft.model.attention import open_mask


class PackedRow(Protocol):
    """What a batch must offer: S samples side by side in one row of T tokens."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


def forward_hidden(model: PreTrainedModel, batch: PackedRow) -> Tensor:
    """Run the decoder over a batch; return the last hidden states [T, K], as the head takes them."""
    return _decoder(model)(**_inputs(model, batch))[0][0]


def forward_logits(model: PreTrainedModel, batch: PackedRow) -> Tensor:
    """Run the whole model over a batch; return the logits [T, V]."""
    return model(**_inputs(model, batch)).logits[0]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor of a batch to the model's device, without waiting for what that still computes."""
    # Only a copy from pinned memory leaves Python free to continue.
    is_sent = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if is_sent else tensor).to(device, non_blocking=True)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None or decoder is model:
        decoder = model.base_model
    if decoder is model:
        raise ConfigError(
            f"{type(model).__name__} does not tell its decoder from its head, which is not supported"
        )
    return decoder


def _inputs(model: PreTrainedModel, batch: PackedRow) -> dict[str, Any]:
    # Sent to the device here, once, and not again by every layer.
    device = model.get_input_embeddings().weight.device
    return {
        "input_ids": to_device(batch.input_ids, device),
        "position_ids": to_device(batch.position_ids, device),
        "attention_mask": open_mask(batch.input_ids.shape[1], device),
        "cu_seq_lens_q": to_device(batch.cu_seqlens, device),
        "cu_seq_lens_k": batch.cu_seqlens,  # for the attention that reads them in Python
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
        "use_cache": False,
    }
