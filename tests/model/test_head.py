"""From hidden states to the loss: plain heads go through linear_cross_entropy, others are found out."""

from __future__ import annotations

import pytest
import torch
from tiny_models import pack, random_model, random_samples, saved_model

from pyft.config import ConfigError
from pyft.model.adapters import attach_adapters
from pyft.model.attention import NAME, register_packed_attention
from pyft.model.head import forward_hidden, forward_logits, head_of
from pyft.model.load import load_model
from pyft.ops.cross_entropy import cross_entropy, linear_cross_entropy

CASES = [
    ("llama", {}, None),
    ("llama", {"tie_word_embeddings": True}, None),
    ("qwen3", {}, None),
    ("mistral", {}, None),
    ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}, None),
    ("gemma2", {"final_logit_softcapping": None}, None),
    ("gemma2", {"final_logit_softcapping": 30.0}, "scales or caps its logits"),
    ("granite", {"logits_scaling": 8.0}, "scales or caps its logits"),
    ("cohere", {"logit_scale": 0.0625}, "scales or caps its logits"),
    ("phi", {}, "the output head has a bias"),
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("model_type", "changes", "reason"), CASES, ids=IDS)
def test_loss_equals_the_models_own(model_type, changes, reason):
    register_packed_attention()
    model = random_model(model_type, attention=NAME, **changes)
    eager = random_model(model_type, **changes)
    samples = random_samples([2, 19, 7])
    labels = [[-100] * (len(sample) // 3) + sample[len(sample) // 3 :] for sample in samples]
    batch = pack(samples, labels)

    head = head_of(model)
    if reason is None:
        assert head.reason is None and head.weight is model.get_output_embeddings().weight
        loss = linear_cross_entropy(forward_hidden(model, batch), head.weight, batch.targets[0])
    else:
        assert head.weight is None and reason in head.reason
        loss = cross_entropy(forward_logits(model, batch), batch.targets[0])
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
    assert "changes the hidden states" in head_of(model).reason


def test_an_adapted_head_is_not_plain(tmp_path):
    saved_model(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, quantization="nf4")
    attach_adapters(model, r=2, lora_alpha=2, lora_dropout=0.0, target_modules=["lm_head"], seed=0)
    assert head_of(model) == (None, "the output head is a LoRALinear")


def test_a_model_without_a_decoder_of_its_own_is_refused():
    register_packed_attention()
    model = random_model("llama", attention=NAME)
    model.get_decoder = lambda: None
    model.base_model_prefix = "absent"
    with pytest.raises(ConfigError, match="does not tell its decoder from its head"):
        forward_hidden(model, pack(random_samples([5])))
