"""Packed attention: samples in one row give what each gives alone, the same as eager attention."""

from __future__ import annotations

import pytest
import torch
from tiny_models import pack, random_model, random_samples

from pyft.model.attention import NAME, packed_attention, register_packed_attention
from pyft.model.forward import forward_hidden, forward_logits
from pyft.model.isolation import check_isolation
from pyft.model.load import enable_gradient_checkpointing

CASES = [
    ("llama", {}),
    ("qwen3", {}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": 5}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("gemma2", {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 7}),
    ("gemma3_text", {"sliding_window": 5, "query_pre_attn_scalar": 7}),
    ("granite", {"attention_multiplier": 0.3}),
    ("phi3", {"pad_token_id": 0}),
    ("gpt_neox", {}),
    ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}),
]
IDS = [f"{name}-{index}" for index, (name, _) in enumerate(CASES)]


def packed_and_eager(model_type, changes):
    register_packed_attention()
    return random_model(model_type, attention=NAME, **changes), random_model(model_type, **changes)


@pytest.mark.parametrize(("model_type", "changes"), CASES, ids=IDS)
def test_packed_equals_separate_eager_runs(model_type, changes):
    packed, eager = packed_and_eager(model_type, changes)
    samples = random_samples([1, 19, 2, 9])
    logits = forward_logits(packed, pack(samples))
    separate = torch.cat([eager(torch.tensor([sample])).logits[0] for sample in samples])
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, separate, rtol=1e-4, atol=1e-4)
    check_isolation(packed)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen2", "mistral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_equal_the_sum_of_separate_runs(model_type, checkpointing):
    packed, eager = packed_and_eager(model_type, {})
    samples = random_samples([7, 1, 12])
    if checkpointing:
        enable_gradient_checkpointing(packed)
    packed.train()
    forward_hidden(packed, pack(samples)).square().sum().backward()
    for sample in samples:
        eager.base_model(torch.tensor([sample]))[0].square().sum().backward()
    for (name, a), b in zip(packed.named_parameters(), eager.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(
                a.grad, b.grad, rtol=1e-3, atol=1e-3 * b.grad.abs().max().item(), msg=name
            )


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": True}])
def test_gradients_in_bfloat16_are_near_those_of_float32(capabilities, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, 12, 8, generator=generator).bfloat16() for h in (4, 2, 2))
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)

    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        out, _ = packed_attention(torch.nn.Module(), *leaves, None, cu_seq_lens_q=starts)
        assert out.dtype == dtype and out.is_contiguous()
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    for ours, expected in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=0.03, atol=0.03 * expected.abs().max().item())


def test_packing_is_bit_equal_to_the_same_attention_alone():
    packed, _ = packed_and_eager("llama", {})
    samples = random_samples([8, 8, 8])
    together = forward_hidden(packed, pack(samples))
    # Rows of the same count, so that matrix products are cut up alike; only the neighbours differ.
    others = forward_hidden(
        packed, pack([random_samples([8], seed=5)[0], samples[1], random_samples([8], seed=6)[0]])
    )
    assert torch.equal(together[8:16], others[8:16])


@pytest.mark.parametrize(("model_type", "changes"), CASES[:7], ids=IDS[:7])
def test_decoding_with_a_cache_equals_one_forward(model_type, changes):
    packed, eager = packed_and_eager(model_type, changes)
    prompt = random_samples([9])[0]
    ids = packed.generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    logits = eager(ids).logits[0]
    assert ids.shape[1] == 19
    assert logits[8:-1].argmax(-1).tolist() == ids[0, 9:].tolist()


def test_padding_and_foreign_attention_are_refused():
    packed, _ = packed_and_eager("llama", {})
    ids = torch.tensor([random_samples([6])[0]])
    with pytest.raises(ValueError, match="attention_mask has padding"):
        packed(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"attention mask of shape \(1, 1, 6, 6\)"):
        packed(ids, attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
    x = torch.randn(1, 2, 3, 8)
    layer = torch.nn.Identity()
    with pytest.raises(ValueError, match="attention sinks"):
        packed_attention(layer, x, x, x, None, s_aux=torch.zeros(2))
    with pytest.raises(ValueError, match="both directions"):
        packed_attention(layer, x, x, x, None, is_causal=False)


def test_attention_dropout_applies_only_when_asked():
    x = torch.randn(1, 2, 6, 8)
    layer = torch.nn.Identity()
    plain = packed_attention(layer, x, x, x, None)[0]
    assert torch.equal(plain, packed_attention(layer, x, x, x, None)[0])
    for softcap in (None, 3.0):
        torch.manual_seed(0)
        dropped = packed_attention(layer, x, x, x, None, dropout=0.5, softcap=softcap)[0]
        assert not torch.allclose(plain, dropped, atol=1e-2)


def test_architecture_that_leaks_along_the_row_is_found():
    from pyft.errors import ConfigError

    class Leaky(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            hidden = self.inner(**inputs)[0]
            return (hidden.cumsum(1),)

    packed, _ = packed_and_eager("llama", {})
    packed.model = Leaky(packed.model)
    packed.get_decoder = lambda: packed.model
    packed.get_input_embeddings = lambda: packed.model.inner.embed_tokens
    with pytest.raises(ConfigError, match=r"data\.packing=false"):
        check_isolation(packed)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_on_cuda_equals_sample_by_sample(window):
    torch.manual_seed(0)
    query = torch.randn(1, 8, 33, 64, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, 33, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    cu_seqlens = torch.tensor([0, 1, 20, 33], dtype=torch.int32)
    options = {"scaling": 0.1, "sliding_window": window, "cu_seq_lens_q": cu_seqlens}
    layer = torch.nn.Identity()
    fast = packed_attention(layer, query, key, value, None, max_length_q=19, **options)[0]
    exact = packed_attention(layer, query.float(), key.float(), value.float(), None, **options)[0]
    torch.testing.assert_close(fast.float(), exact, rtol=2e-2, atol=2e-2)
