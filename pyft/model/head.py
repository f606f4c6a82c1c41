"""From a batch to hidden states, and from hidden states to what the loss needs.

    known head:    logits = cap(scale (hidden @ W^T + bias))   -> the loss takes hidden and the head
    otherwise:     logits = model(batch).logits                   (an adapted head, ...)

    cap(x) = softcap tanh(x / softcap): Gemma's; scale: Cohere's and Granite's; either may be absent

With a known head the logits are never stored. Whether it is known, and its scale and cap, are found by asking
the model, not by a list of architectures: a probe replaces the head's output for one small forward, reads
scale and cap off what comes out of the model and checks them on other numbers, and looks whether the head's
input is the decoder's last hidden state. A second probe checks that samples in a row stay apart.

A batch is anything with input_ids [1, T], position_ids [1, T], cu_seqlens [S + 1] and max_seqlen.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.errors import ConfigError


class PackedRow(Protocol):
    """What a batch must offer: S samples side by side in one row of T tokens."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


class Head(NamedTuple):
    """An output head: logits = cap(scale (hidden @ weight^T + bias)).

    Attributes:
        weight: [V, K].
        bias: [V] or None.
        scale: factor of the logits.
        softcap: the bound of cap(x) = softcap tanh(x / softcap), or None for cap(x) = x.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def forward_hidden(model: PreTrainedModel, batch: PackedRow) -> Tensor:
    """Run the decoder over a batch.

    Args:
        model: a causal language model.
        batch: one row of samples.

    Returns:
        The last hidden states [T, K], as the head takes them.
    """
    return _decoder(model)(**_inputs(model, batch))[0][0]


def forward_logits(model: PreTrainedModel, batch: PackedRow) -> Tensor:
    """Run the whole model over a batch, for heads that `head_of` does not know.

    Args:
        model: a causal language model.
        batch: one row of samples.

    Returns:
        Logits [T, V].
    """
    return model(**_inputs(model, batch)).logits[0]


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head | str:
    """Find out how the model's logits come from its hidden states. Costs one forward of four tokens.

    Args:
        model: a causal language model.

    Returns:
        The head, or why it is not a known one. Weight and bias are the live parameters: ask once, use them
        every step.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"the output head is a {type(head).__name__}"

    seen: dict[str, Tensor] = {}

    def capture(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        seen["hidden"] = args[0]
        # float32 even in a bfloat16 model, so that scale and cap are read to full precision
        seen["logits"] = _probe_logits(output.shape).to(output.device)
        return seen["logits"]

    batch = _probe_batch(model, [4])
    training = model.training
    model.eval()
    hook = head.register_forward_hook(capture)
    try:
        logits = forward_logits(model, batch)
        hidden = forward_hidden(model, batch)
    finally:
        hook.remove()
        model.train(training)
    if "hidden" not in seen or seen["hidden"].shape[-2:] != hidden.shape:
        return "the output head is not applied to the decoder's last hidden states"
    found = _scale_and_softcap(seen["logits"].reshape(logits.shape), logits.float())
    if found is None:
        return "the model does more to its logits than to scale and cap them"
    if not torch.equal(seen["hidden"].reshape(hidden.shape), hidden):
        return "the model changes the hidden states before the output head"
    return Head(head.weight, head.bias, *found)


_TINY, _HUGE = 2.0**-20, 1e30  # too small for any cap to bend, too large for any not to be reached


def _probe_logits(shape: torch.Size) -> Tensor:
    """[..., T, V]: rows of the tiny and of the huge number, then a ramp with no two entries alike."""
    probe = torch.linspace(-1000, 1000, shape.numel()).reshape(-1, shape[-1])
    probe[0], probe[1] = _TINY, _HUGE
    return probe.reshape(shape)


def _scale_and_softcap(before: Tensor, after: Tensor) -> tuple[float, float | None] | None:
    """Read scale and cap off what the model made of the probe [T, V]; None when they do not explain it."""
    scale, most = after[0, 0].item() / _TINY, after[1, 0].item()
    if torch.equal(after, before):
        return 1.0, None
    if torch.allclose(after, before * scale, rtol=1e-5, atol=0.0):
        return scale, None
    if most > 0 and torch.allclose(after, most * torch.tanh(before * scale / most), rtol=1e-4, atol=1e-6):
        return scale, most
    return None


@torch.no_grad()
def check_isolation(model: PreTrainedModel) -> None:
    """Make sure that samples in one row do not see each other. Costs two forwards of a few tokens.

    Args:
        model: a causal language model.

    Raises:
        ConfigError: when the architecture carries something from one sample into the next.
    """
    training = model.training
    model.eval()
    try:
        together = forward_hidden(model, _probe_batch(model, [3, 4]))[3:]
        alone = forward_hidden(model, _probe_batch(model, [4]))
    finally:
        model.train(training)
    scale = alone.float().abs().max().clamp_min(1e-6)
    tolerance = 1e-4 if alone.dtype == torch.float32 else 5e-2
    if not bool((together.float() - alone.float()).abs().max() <= tolerance * scale):
        raise ConfigError(
            f"{type(model).__name__} does not keep samples in one row apart, layers carry state along it: "
            "set data.packing=false, train.per_device_train_batch_size=1 and "
            "train.per_device_eval_batch_size=1"
        )


class _ProbeBatch(NamedTuple):
    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


def _probe_batch(model: PreTrainedModel, lengths: list[int]) -> _ProbeBatch:
    """Samples of the given lengths; the last one is the same whatever stands before it."""
    device = model.get_input_embeddings().weight.device
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * (index + 1) + length) % rows for length in lengths for index in range(length)]
    positions = [index for length in lengths for index in range(length)]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return _ProbeBatch(
        torch.tensor([ids], device=device), torch.tensor([positions], device=device), ends, max(lengths)
    )


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
    cu_seqlens = batch.cu_seqlens.to(device)
    return {
        "input_ids": batch.input_ids.to(device),
        "position_ids": batch.position_ids.to(device),
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
        "use_cache": False,
    }
