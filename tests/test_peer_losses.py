"""Fifty QLoRA steps beside transformers + PEFT + bitsandbytes: the losses stay within one per cent."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_models import pack, random_samples, saved_model
from torch import nn

from pyft.config.schema import TrainConfig
from pyft.model.adapters import attach_adapters
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.ops.nf4 import nf4_from_bitsandbytes
from pyft.tasks.next_token import next_token_loss
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.settings import TrainSettings

NUM_STEPS = 50
# From 5.5 to 2.1 in fifty steps. At twice the rate the few samples are known by heart: a loss of a twelfth of
# its beginning, of which bfloat16's own rounding is one per cent.
SETTINGS = TrainSettings.of(TrainConfig(learning_rate=1e-3, max_grad_norm=1.0))
SIZES = {"hidden_size": 128, "intermediate_size": 192, "tie_word_embeddings": True}


def our_model(folder, dtype):
    model = load_model(folder, dtype=dtype, quantization="nf4")
    attach_adapters(model, r=8, lora_alpha=16, lora_dropout=0.0, seed=0)
    enable_gradient_checkpointing(model)
    return model.train()


def our_losses(model, batches):
    parameters = TrainedParameters(model, SETTINGS)
    for batch in batches:
        loss = next_token_loss(model, batch)
        (loss.sum / loss.count).backward()
        parameters.step(SETTINGS.learning_rate, parameters.gradient_norm(), SETTINGS.max_grad_norm)
        yield loss.sum.item() / loss.count


def peer_model(folder, dtype):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization, device_map="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that PEFT uses
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
        return get_peft_model(model, config).train()


def peer_losses(model, batches):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=SETTINGS.learning_rate, weight_decay=0.0)
    for batch in batches:
        labels = batch.targets.roll(1, 1)  # transformers shifts them back
        labels[0, 0] = -100
        loss = model(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, SETTINGS.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


@torch.no_grad()
def share_weights(ours, peer):
    """Give ours the peer's NF4 weights (nested scales centred on its mean), and the peer our adapters."""
    theirs = dict(peer.get_base_model().named_modules())
    for name, layer in ours.named_modules():
        if not isinstance(layer, LoRALinear):
            continue
        weight = theirs[name].base_layer.weight
        state = weight.quant_state
        nf4 = nf4_from_bitsandbytes(
            weight.data,
            state.absmax,
            state.shape,
            nested_absmax=state.state2.absmax,
            nested_map=state.state2.code,
            offset=state.offset,
        )
        assert torch.equal(nf4.codes, layer.base.codes)
        layer.base.hold(nf4)
        theirs[name].lora_A["default"].weight.copy_(layer.lora_A)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.01)])
def test_losses_track_the_peers(tmp_path, dtype, tolerance):
    saved_model(tmp_path, "qwen2", spread=0.08, **SIZES)
    ours, peer = our_model(tmp_path, dtype), peer_model(tmp_path, dtype)
    share_weights(ours, peer)
    samples = random_samples([60] * 5)
    labels = [[-100] * 45 + sample[45:] for sample in samples]
    rows = [pack([sample], [wanted]) for sample, wanted in zip(samples, labels, strict=True)]
    batches = [rows[step % len(rows)] for step in range(NUM_STEPS)]
    curves = list(zip(our_losses(ours, batches), peer_losses(peer, batches), strict=True))
    assert len(curves) == NUM_STEPS
    assert curves[-1][1] < 0.7 * curves[0][1]  # something was learned
    for step, (our, their) in enumerate(curves, start=1):
        assert our == pytest.approx(their, rel=tolerance), f"step {step}"
