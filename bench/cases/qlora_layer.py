"""qlora_layer: forward and backward of one decoder layer in NF4 with LoRA, beside PEFT + bitsandbytes.

A Llama of one layer is written to disk with random weights, and loaded as in `qlora_step`, without
recomputing activations. The work is the decoder over random hidden states (the layer, and the last norm) and
its backward to those and to the adapters. Weights and adapters are the same in both; the result is compared
with float32.

The memory is what the work takes beyond the weights.

Shape: T tokens, hidden, mlp, heads, kv_heads, R adapter rank.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import expect
import peers
import shapes
import torch
from cases.qlora_step import PEER, load_ours, load_peer, share_weights
from timing import OURS, Case
from torch import Tensor, nn

from pyft.model.layers.lora_linear import LoRALinear

_VOCABULARY = 256


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: see above.
        dtype: of the model.
        device: "cpu" or "cuda".

    Yields:
        Forward + backward.
    """
    num_tokens, hidden_size = int(shape["T"]), int(shape["hidden"])
    hidden = expect.random(1, num_tokens, hidden_size, dtype=dtype, requires_grad=True, device=device)
    # Of another shape, as equal shapes give equal numbers, and the norm takes out what is along its input.
    grad_output = expect.random(num_tokens, hidden_size, dtype=dtype, scale=1e-2, device=device)[None]
    with tempfile.TemporaryDirectory(prefix="pyft-bench-") as folder:
        _write_model(shape, dtype, Path(folder))
        models = {OURS: load_ours(Path(folder), shape, dtype, device)}
        if peers.peft() is not None:
            models[PEER] = load_peer(Path(folder), shape, dtype, device, checkpointing=False)
            share_weights(models[OURS], models[PEER])
        dense = _dense_model(Path(folder), models[OURS], device)
    lengths = torch.tensor([0, num_tokens], dtype=torch.int32, device=device)
    packed = {
        "cu_seq_lens_q": lengths,
        "cu_seq_lens_k": lengths,
        "max_length_q": num_tokens,
        "max_length_k": num_tokens,
    }

    def run(name: str) -> Tensor:
        model = models[name]
        decoder = model.get_base_model().model if name == PEER else model.model
        out = decoder(inputs_embeds=hidden, use_cache=False, **(packed if name == OURS else {}))
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(out.last_hidden_state, [hidden, *trained], grad_output)
        return gradients[0]

    def check(_: str, gradient: Tensor) -> str | None:
        error = ((gradient.float() - expected).norm() / expected.norm()).item()
        bound = 2e-2 if dtype == "bfloat16" else 1e-4
        return None if error < bound else f"the gradient of the hidden states is off by {error:.2%}"

    wide = hidden.detach().float().requires_grad_()
    out = dense(inputs_embeds=wide, use_cache=False).last_hidden_state
    expected = torch.autograd.grad(out, wide, grad_output.float())[0]
    kv_width = hidden_size * shape["kv_heads"] / shape["heads"]
    weights = 2 * hidden_size * (hidden_size + kv_width) + 3 * hidden_size * shape["mlp"]
    yield Case(
        op="qlora_layer",
        label=f"fwd+bwd {dtype} {shapes.format_shape(shape)}",
        contenders={name: lambda name=name: run(name) for name in models},
        check=check,
        # the linear layers' products: forward, and backward to the layer's input
        work=4.0 * num_tokens * weights,
        unit="GFLOP/s",
    )


def _write_model(shape: shapes.Shape, dtype: str, folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=int(shape["hidden"]),
        intermediate_size=int(shape["mlp"]),
        num_attention_heads=int(shape["heads"]),
        num_key_value_heads=int(shape["kv_heads"]),
        vocab_size=_VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        dtype=dtype,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


@torch.no_grad()
def _dense_model(folder: Path, model: nn.Module, device: str) -> nn.Module:
    """The decoder in float32 with the dequantised weights, and no adapter: B is zero."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(
        device
    )
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            dense.get_submodule(name).weight.copy_(layer.base.dense_weight())
    return dense.model
