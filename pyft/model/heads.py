"""How a model's logits come from its hidden states, so that the loss need not store the logits.

    known head:    logits = cap(scale (hidden @ W^T + bias))   -> the loss takes hidden and the head
    otherwise:     logits = model(batch).logits                   (an adapted head, ...)

    cap(x) = softcap tanh(x / softcap): Gemma's; scale: Cohere's and Granite's; either may be absent

Whether the head is known, and its scale and cap, are found by asking the model, not by a list of
architectures: a probe replaces the head's output for one small forward, reads scale and cap off what comes
out of the model and checks them on other numbers, and looks whether the head's input is the decoder's last
hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.model.forward import forward_hidden, forward_logits
from pyft.model.probe import probe_batch, probing


@dataclass(frozen=True)
class Head:
    """An output head: logits = cap(scale (hidden @ weight^T + bias)).

    Weight and bias are looked up in the model each time they are asked for, so wrappers may replace them.

    Attributes:
        model: whose head it is.
        scale: factor of the logits.
        softcap: the bound of cap(x) = softcap tanh(x / softcap), or None for cap(x) = x.
    """

    model: PreTrainedModel
    scale: float
    softcap: float | None

    @property
    def weight(self) -> Tensor:
        """The weight [V, K] as it is now."""
        return self.model.get_output_embeddings().weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [V] as it is now, or None."""
        return self.model.get_output_embeddings().bias


_FOUND: WeakKeyDictionary[nn.Module, tuple[float, float | None] | str] = WeakKeyDictionary()
"""Model -> what its probe found: scale and cap, or why the head is not a known one."""


def head_of(model: PreTrainedModel) -> Head | str:
    """Tell how the logits come from the hidden states: the head, or why it is not a known one.

    The first call costs a forward of four tokens; later ones may be made at each batch.
    """
    head = model.get_output_embeddings()
    if getattr(type(head), "forward", None) is not nn.Linear.forward:
        return f"the output head is a {type(head).__name__}"
    if model not in _FOUND:
        _FOUND[model] = _probe(model, head)
    found = _FOUND[model]
    return found if isinstance(found, str) else Head(model, *found)


def _probe(model: PreTrainedModel, head: nn.Linear) -> tuple[float, float | None] | str:
    """Read scale and cap off one forward of four tokens."""
    seen: dict[str, Tensor] = {}

    def capture(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        seen["hidden"] = args[0]
        # float32 even in a bfloat16 model, so that scale and cap are read to full precision
        seen["logits"] = _probe_logits(output.shape).to(output.device)
        return seen["logits"]

    batch = probe_batch(model, [4])
    hook = head.register_forward_hook(capture)
    try:
        with probing(model):
            logits = forward_logits(model, batch)
            hidden = forward_hidden(model, batch)
    finally:
        hook.remove()
    if "hidden" not in seen or seen["hidden"].shape[-2:] != hidden.shape:
        return "the output head is not applied to the decoder's last hidden states"
    found = _scale_and_softcap(seen["logits"].reshape(logits.shape), logits.float())
    if found is None:
        return "the model does more to its logits than to scale and cap them"
    if not torch.equal(seen["hidden"].reshape(hidden.shape), hidden):
        return "the model changes the hidden states before the output head"
    return found


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
