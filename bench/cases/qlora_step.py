"""qlora_step: an optimizer step of a whole model in NF4 with LoRA, beside transformers + PEFT + bitsandbytes.

A Qwen2.5-shaped model with random weights is written to disk, and each contender loads it as its users do:
pyft quantises while reading; the peer follows PEFT's recipe (`BitsAndBytesConfig` with double quantisation,
`prepare_model_for_kbit_training`). Both recompute activations, as both do by default. They then hold the
peer's NF4 weights, equal to the bit, and the same initial adapters, see one row of T tokens of which a share
is trained, and take AdamW's steps: the losses of every step are compared and the largest difference said.
On a CPU that has no instruction for bfloat16 the peer computes in float32 whatever ours does: torch's
bfloat16 products take a hundred times as long there, a step of the 0.5B model more than ten minutes.

The memory is the peak of two steps in a process of its own, after loading: what is resident, or on a GPU what
torch has allocated.

Shape: T tokens, layers, hidden, mlp, heads, kv_heads, V vocabulary, R adapter rank, counted.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # the process whose memory is measured
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import expect
import peers
import shapes
import torch
from timing import OURS, Case
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyft.config.schema import TrainConfig
from pyft.model.adapters import attach_adapters
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.model.peak_memory import peak_memory_bytes, reset_peak_memory
from pyft.ops.nf4 import nf4_from_bitsandbytes
from pyft.tasks.next_token import next_token_loss
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.settings import TrainSettings

PEER = "transformers + peft + bitsandbytes"
PEER_IN_FLOAT32 = f"{PEER} in float32"
_SETTINGS = TrainSettings.of(TrainConfig(learning_rate=2e-4, max_grad_norm=1.0))
_ALPHA = 16

Step = Callable[[], float]


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: see above.
        dtype: of the model.
        device: "cpu" or "cuda".

    Yields:
        The step.
    """
    losses: dict[str, list[float]] = {}
    peer_name, peer_dtype = PEER, dtype
    has = torch.cpu.get_capabilities().get
    if dtype == "bfloat16" and device == "cpu" and not (has("avx512_bw") or has("bf16")):
        peer_name, peer_dtype = PEER_IN_FLOAT32, "float32"

    def recorded(name: str, step: Step) -> Step:
        def run() -> float:
            losses.setdefault(name, []).append(step())
            return losses[name][-1]

        return run

    with tempfile.TemporaryDirectory(prefix="pyft-bench-") as folder:
        _write_model(shape, dtype, Path(folder))
        row = _make_row(shape, device)
        model = load_ours(Path(folder), shape, dtype, device)
        enable_gradient_checkpointing(model)
        steps = {OURS: _our_step(model, row)}
        if peers.peft() is not None:
            peer = load_peer(Path(folder), shape, peer_dtype, device)
            share_weights(model, peer)
            steps[peer_name] = _peer_step(peer, row)
        expected = _dense_loss(Path(folder), model, row)
        yield Case(
            op="qlora_step",
            label=f"{dtype} {shapes.format_shape(shape)}",
            contenders={name: recorded(name, step) for name, step in steps.items()},
            check=lambda _, loss: (
                None if abs(loss - expected) < 1e-2 else f"loss {loss}, expected {expected}"
            ),
            work=shape["T"],
            unit="tokens/s",
            scale=1.0,
            peak_bytes=lambda name: _measure_peak(
                name, Path(folder), shape, dtype if name == OURS else peer_dtype, device
            ),
        )
        if peer_name in losses:
            ratios = [abs(a / b - 1) for a, b in zip(losses[OURS], losses[peer_name], strict=True)]
            print(f"{'':<21} losses of {len(ratios)} steps differ by {max(ratios):.2%} at most", flush=True)


def _write_model(shape: shapes.Shape, dtype: str, folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM, logging

    logging.disable_progress_bar()
    config = Qwen2Config(
        num_hidden_layers=int(shape["layers"]),
        hidden_size=int(shape["hidden"]),
        intermediate_size=int(shape["mlp"]),
        num_attention_heads=int(shape["heads"]),
        num_key_value_heads=int(shape["kv_heads"]),
        vocab_size=int(shape["V"]),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        dtype=dtype,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def _make_row(shape: shapes.Shape, device: str) -> SimpleNamespace:
    """One sample of random tokens, as pyft's collator gives it."""
    num_tokens, generator = int(shape["T"]), torch.Generator().manual_seed(1)
    targets = expect.masked_targets(num_tokens, shape["V"], shape["counted"])
    return SimpleNamespace(
        input_ids=torch.randint(int(shape["V"]), (1, num_tokens), generator=generator).to(device),
        targets=targets[None].to(device),
        position_ids=torch.arange(num_tokens, device=device)[None],
        cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
        max_seqlen=num_tokens,
        num_targets=int((targets != -100).sum()),
    )


def load_ours(folder: Path, shape: shapes.Shape, dtype: str, device: str) -> nn.Module:
    """Load pyft's model: NF4 with double quantisation, an adapter on every linear layer but the head."""
    model = load_model(folder, dtype=getattr(torch, dtype), quantization="nf4", device=device)
    attach_adapters(model, r=int(shape["R"]), lora_alpha=_ALPHA, lora_dropout=0.0, seed=0)
    return model.train()


def _our_step(model: nn.Module, row: SimpleNamespace) -> Step:
    parameters = TrainedParameters(model, _SETTINGS)

    def step() -> float:
        loss = next_token_loss(model, row)
        (loss.sum / loss.count).backward()
        parameters.step(_SETTINGS.learning_rate, parameters.gradient_norm(), _SETTINGS.max_grad_norm)
        return loss.sum.item() / loss.count

    return step


def load_peer(
    folder: Path, shape: shapes.Shape, dtype: str, device: str, *, checkpointing: bool = True
) -> nn.Module:
    """Load the peer's model as PEFT's documentation does."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), quantization_config=quantization, device_map=device
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    config = LoraConfig(r=int(shape["R"]), lora_alpha=_ALPHA, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, config).train()


def _peer_step(model: nn.Module, row: SimpleNamespace) -> Step:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_SETTINGS.learning_rate, weight_decay=0.0, fused=True)
    labels = row.targets.roll(1, 1)  # transformers shifts them back
    labels[0, 0] = -100

    def step() -> float:
        loss = model(input_ids=row.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, _SETTINGS.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


@torch.no_grad()
def share_weights(model: nn.Module, peer: nn.Module) -> None:
    """Copy the peer's NF4 weights to ours (their nested scales depend on its threads), our adapters to it."""
    theirs = dict(peer.get_base_model().named_modules())
    for name, ours in model.named_modules():
        if not isinstance(ours, LoRALinear):
            continue
        layer = theirs[name]
        packed, state = layer.base_layer.weight.data, layer.base_layer.weight.quant_state
        weight = nf4_from_bitsandbytes(
            packed,
            state.absmax,
            state.shape,
            nested_absmax=state.state2.absmax,
            nested_map=state.state2.code,
            offset=state.offset,
        )
        # On a GPU bitsandbytes divides approximately: a value between two codes may get the other one.
        share = (weight.codes != ours.base.codes).double().mean().item()
        if share > (1e-5 if weight.codes.is_cuda else 0.0):
            raise RuntimeError(f"qlora_step: {name} has other NF4 codes in bitsandbytes: {share:.2%}")
        ours.base.hold(weight)
        layer.lora_A["default"].weight.copy_(ours.lora_A)


@torch.no_grad()
def _dense_loss(folder: Path, model: nn.Module, row: SimpleNamespace) -> float:
    """What the first step's loss must be: float32, dense weights, no adapter (B is zero), eager attention."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(
        row.input_ids.device
    )
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            dense.get_submodule(name).weight.copy_(layer.base.dense_weight())
    hidden: Tensor = dense.base_model(input_ids=row.input_ids).last_hidden_state[0]
    counted = row.targets[0] != -100
    return cross_entropy(dense.lm_head(hidden[counted]), row.targets[0][counted]).item()


def _measure_peak(name: str, folder: Path, shape: shapes.Shape, dtype: str, device: str) -> int:
    order = json.dumps([name, str(folder), shape, dtype, device, torch.get_num_threads()])
    done = subprocess.run([sys.executable, __file__, order], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _print_peak(
    name: str, folder: str, shape: shapes.Shape, dtype: str, device: str, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    row = _make_row(shape, device)
    load, make_step = (load_ours, _our_step) if name == OURS else (load_peer, _peer_step)
    model = load(Path(folder), shape, dtype, device)
    if name == OURS:
        enable_gradient_checkpointing(model)
    step = make_step(model, row)
    reset_peak_memory(device)
    losses: list[Any] = [step() for _ in range(2)]
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"qlora_step: losses are {losses}")
    print(peak_memory_bytes(device))


if __name__ == "__main__":
    _print_peak(*json.loads(sys.argv[1]))
