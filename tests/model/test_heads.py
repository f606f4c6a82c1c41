"""From hidden states to the loss: known heads go through linear_cross_entropy, others are found out."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny_models import pack, random_model, random_samples, saved_model

from pyft.errors import ConfigError
from pyft.model.adapters import attach_adapters
from pyft.model.attention import NAME, register_packed_attention
from pyft.model.forward import forward_hidden, forward_logits
from pyft.model.heads import head_of
from pyft.model.load import load_model
from pyft.tasks.next_token import next_token_loss

# model type, changes to its config, and what the logits must be found to be: scale, softcap
CASES = [
    ("llama", {}, (1.0, None)),
    ("llama", {"tie_word_embeddings": True}, (1.0, None)),
    ("qwen3", {}, (1.0, None)),
    ("mistral", {}, (1.0, None)),
    ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}, (1.0, None)),
    ("gemma2", {"final_logit_softcapping": None}, (1.0, None)),
    ("gemma2", {"final_logit_softcapping": 30.0}, (1.0, 30.0)),
    ("gemma2", {"final_logit_softcapping": 0.5}, (1.0, 0.5)),
    ("granite", {"logits_scaling": 8.0}, (0.125, None)),
    ("granite", {"logits_scaling": 3.0}, (1 / 3, None)),
    ("cohere", {"logit_scale": 0.0625}, (0.0625, None)),
    ("phi", {}, (1.0, None)),
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("model_type", "changes", "scale_and_cap"), CASES, ids=IDS)
def test_loss_equals_the_models_own(model_type, changes, scale_and_cap):
    register_packed_attention()
    model = random_model(model_type, attention=NAME, **changes)
    eager = random_model(model_type, **changes)
    samples = random_samples([2, 19, 7])
    labels = [[-100] * (len(sample) // 3) + sample[len(sample) // 3 :] for sample in samples]
    batch = pack(samples, labels)

    head, linear = head_of(model), model.get_output_embeddings()
    assert head.weight is linear.weight and head.bias is linear.bias
    assert (head.bias is not None) == (model_type == "phi")
    scale, softcap = scale_and_cap
    assert head.scale == pytest.approx(scale, rel=1e-6) and head.softcap == softcap
    loss = next_token_loss(model, batch).sum
    expected, counted = 0.0, 0
    for sample, wanted in zip(samples, labels, strict=True):
        num = sum(label != -100 for label in wanted[1:])
        expected += eager(torch.tensor([sample]), labels=torch.tensor([wanted])).loss * num
        counted += num
    assert counted == int((batch.targets != -100).sum())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)

    model.zero_grad(), loss.backward(), expected.backward()
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * b.grad.abs().max().item(), msg=name)


def test_the_head_is_looked_up_at_each_batch():
    register_packed_attention()
    model = random_model("llama", attention=NAME, tie_word_embeddings=False)
    batch = pack(random_samples([2, 7]))
    next_token_loss(model, batch)
    model.set_output_embeddings(torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=True))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    expected = torch.nn.functional.cross_entropy(
        forward_logits(model, batch), batch.targets[0], reduction="sum"
    )
    loss = next_token_loss(model, batch).sum
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.lm_head.weight.grad is not None and model.lm_head.bias.grad is not None


@pytest.mark.parametrize("changes", [{"final_logit_softcapping": 30.0}, {"final_logit_softcapping": 7.3}])
def test_a_cap_is_read_exactly_from_a_bfloat16_model(changes):
    register_packed_attention()
    model = random_model("gemma2", attention=NAME, **changes).to(torch.bfloat16)
    head = head_of(model)
    assert head.scale == pytest.approx(1.0, rel=1e-6)
    assert head.softcap == pytest.approx(changes["final_logit_softcapping"], rel=1e-6)


@pytest.mark.parametrize(
    "change", [lambda x: x - 1.0, torch.log_softmax, lambda x: x.clamp(-30, 30), torch.sin]
)
def test_a_model_that_does_more_to_its_logits_is_found(change):
    register_packed_attention()
    model = random_model("llama", attention=NAME)
    forward = model.forward

    def changed(**inputs):
        output = forward(**inputs)
        output.logits = change(output.logits, -1) if change is torch.log_softmax else change(output.logits)
        return output

    model.forward = changed
    assert "does more to its logits" in head_of(model)


def test_a_model_is_asked_once_and_not_kept_alive():
    register_packed_attention()
    model = random_model("gemma2", attention=NAME, final_logit_softcapping=30.0)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    first = head_of(model)
    num_forwards = len(forwards)
    assert num_forwards > 0 and head_of(model) == first and len(forwards) == num_forwards
    model.lm_head.__class__ = type("Sharded", (torch.nn.Linear,), {})  # as FSDP2 does
    assert head_of(model) == first and len(forwards) == num_forwards
    other = random_model("gemma2", attention=NAME, final_logit_softcapping=7.0)
    assert head_of(other).softcap == pytest.approx(7.0, rel=1e-6)
    left = weakref.ref(model)
    del model, first
    gc.collect()
    assert left() is None


def test_probe_leaves_no_trace():
    register_packed_attention()
    model = random_model("llama", attention=NAME).train()
    before = torch.random.get_rng_state()
    batch = pack(random_samples([5]))
    logits = forward_logits(model, batch)
    head_of(model)
    assert model.training and not model.lm_head._forward_hooks
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(logits, forward_logits(model, batch))


def test_a_model_that_scales_before_the_head_is_found():
    register_packed_attention()
    model = random_model("llama", attention=NAME)
    model.lm_head.register_forward_pre_hook(lambda _module, args: (args[0] * 0.5,))
    assert "changes the hidden states" in head_of(model)


def test_an_adapted_head_is_not_plain(tmp_path):
    saved_model(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, quantization="nf4")
    attach_adapters(model, r=2, lora_alpha=2, lora_dropout=0.0, target_modules=["lm_head"], seed=0)
    assert head_of(model) == "the output head is a LoRALinear"
    batch = pack(random_samples([5]))
    loss = next_token_loss(model, batch).sum
    expected = torch.nn.functional.cross_entropy(
        forward_logits(model, batch), batch.targets[0], reduction="sum"
    )
    torch.testing.assert_close(loss, expected)


def test_a_model_without_a_decoder_of_its_own_is_refused():
    register_packed_attention()
    model = random_model("llama", attention=NAME)
    model.get_decoder = lambda: None
    model.base_model_prefix = "absent"
    with pytest.raises(ConfigError, match="does not tell its decoder from its head"):
        forward_hidden(model, pack(random_samples([5])))
