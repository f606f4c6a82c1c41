"""Fused norms, MLPs and rotary embeddings: what is replaced, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from numerics import assert_close_to_reference
from tiny_models import SMALL, pack, random_model, random_samples, saved_model
from torch import nn
from transformers import AutoModelForCausalLM

from pyft.model.adapters import attach_adapters, matching_names, trainable_state
from pyft.model.architecture import init_model
from pyft.model.attention import NAME, register_packed_attention
from pyft.model.forward import forward_hidden
from pyft.model.layers.fused import FusedMLP, FusedRMSNorm, describe_fused, fuse_activations
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.ops import native
from pyft.ops import rotary as rotary_module

# Of two layers: norms, MLPs, rotary embeddings, and what stays.
EXPECTED = {
    "llama": "fused: 2 rotary embeddings, 2 MLPs, 5 norms",
    "mistral": "fused: 2 rotary embeddings, 2 MLPs, 5 norms",
    "qwen2": "fused: 2 rotary embeddings, 2 MLPs, 5 norms",
    "qwen3": "fused: 2 rotary embeddings, 9 norms, 2 MLPs",
    "gemma2": "fused: 2 rotary embeddings, 9 norms; by transformers: 2 Gemma2MLP",
    "phi3": "fused: 2 rotary embeddings, 5 norms",
    "olmo": "fused: 2 rotary embeddings, 2 MLPs",
    "glm": "fused: 5 norms; by transformers: 2 GlmAttention",
    "cohere": "fused: 2 MLPs; by transformers: 2 CohereAttention",
}


def both(model_type: str, **changes: object):
    """A model as transformers has it, and the same one fused."""
    register_packed_attention()
    stock = random_model(model_type, attention=NAME, **changes)
    fused = copy.deepcopy(stock)
    fuse_activations(fused)
    return stock, fused


def hidden_and_gradients(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    model = copy.deepcopy(model).train()
    for parameter in model.parameters():  # rotary tables stay float32
        parameter.data = parameter.data.to(dtype)
    hidden = forward_hidden(model, pack(random_samples([7, 1, 12])))
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden.backward(weights)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [hidden.detach(), *gradients]


@pytest.mark.parametrize("model_type", EXPECTED)
def test_what_is_known_is_fused_and_the_rest_is_named(model_type):
    _, fused = both(model_type)
    assert sorted(describe_fused(fused).replace("fused: ", "").split(", ")) == sorted(
        EXPECTED[model_type].replace("fused: ", "").split(", ")
    )


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo"])
def test_outputs_and_gradients_equal_the_architectures_own(model_type):
    stock, fused = both(model_type)
    ours, theirs = (hidden_and_gradients(model, torch.float32) for model in (fused, stock))
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
    exact = hidden_and_gradients(stock, torch.float64)
    rounded = [hidden_and_gradients(model, torch.bfloat16) for model in (fused, stock)]
    for a, b, reference in zip(*rounded, exact, strict=True):
        assert_close_to_reference(a, reference, b)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
def test_names_parameters_and_training_mode_stay(model_type):
    stock, fused = both(model_type)
    assert list(fused.state_dict()) == list(stock.state_dict())
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert matching_names(fused, "all-linear") == matching_names(stock, "all-linear")
    assert not any(module.training for module in fused.modules())
    before = describe_fused(fused)
    fuse_activations(fused)
    assert describe_fused(fused) == before
    assert describe_fused(copy.deepcopy(fused)) == before


def test_transformers_own_classes_are_untouched():
    stock, fused = both("qwen3")
    after = random_model("qwen3", attention=NAME)
    kinds = {type(module) for module in after.modules()}
    assert kinds == {type(module) for module in stock.modules()}
    assert not any("forward" in vars(module) for module in after.modules())
    assert type(fused.model.layers[0].self_attn) in kinds


def test_a_copy_does_not_compute_with_the_original():
    _, fused = both("llama")
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ids = torch.tensor([random_samples([9])[0]])
    assert fused(ids).logits.abs().max() > 0
    assert other(ids).logits.abs().max() == 0


def test_the_operations_are_really_used(monkeypatch):
    _, fused = both("llama")
    calls = []
    run = rotary_module.C.rotary
    monkeypatch.setattr(
        rotary_module, "C", type("Counted", (), {"rotary": lambda **a: (calls.append(1), run(**a))})
    )
    fused(torch.tensor([random_samples([9])[0]]))
    assert len(calls) == 2
    assert isinstance(fused.model.norm, FusedRMSNorm)
    assert isinstance(fused.model.layers[0].mlp, FusedMLP)


def test_loading_and_beginning_fuse_and_saving_gives_the_same_files(tmp_path):
    stock = saved_model(tmp_path / "a", "qwen2")
    loaded = load_model(tmp_path / "a", dtype=torch.float32)
    assert describe_fused(loaded) == EXPECTED["qwen2"]
    loaded.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    for (name, a), (other, b) in zip(again.state_dict().items(), stock.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    begun = init_model({"model_type": "llama", **SMALL}, vocab_size=131)
    assert describe_fused(begun) == EXPECTED["llama"]


def test_random_numbers_are_left_alone():
    stock, _ = both("llama")
    before = torch.random.get_rng_state()
    fuse_activations(stock)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_float16_model_stays_as_it_is():
    model = random_model("llama").half()
    fuse_activations(model)
    assert describe_fused(model).startswith("fused: nothing; by transformers: 2 LlamaAttention")


class _CentredRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(64)), 1e-6

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class _AbsentEpsRMSNorm(_CentredRMSNorm):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True))


class _GatedRMSNorm(_CentredRMSNorm):
    def forward(self, x, gate=None):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize("norm", [_CentredRMSNorm, _AbsentEpsRMSNorm, _GatedRMSNorm])
def test_a_norm_that_does_something_else_is_kept(norm):
    model = random_model("llama")
    model.model.norm = norm()
    fuse_activations(model)
    assert type(model.model.norm) is norm


@pytest.mark.parametrize("change", ["scaled", "swapped", "activation", "hooked"])
def test_an_mlp_that_does_something_else_is_kept(change):
    model = random_model("llama")
    mlp = model.model.layers[0].mlp

    class Other(type(mlp)):
        def forward(self, x):
            if change == "scaled":
                return 1.5 * super().forward(x)
            if change == "swapped":
                return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))
            return super().forward(x)

    mlp.__class__ = Other
    if change == "activation":
        mlp.act_fn = nn.GELU()
    if change == "hooked":
        mlp.register_forward_hook(lambda module, args, output: output + 1)
    fuse_activations(model)
    assert model.model.layers[0].mlp is mlp
    assert isinstance(model.model.layers[1].mlp, FusedMLP)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_last_product_of_a_block_is_not_recomputed(tmp_path, quantization, monkeypatch):
    saved_model(tmp_path, "llama")
    model = load_model(tmp_path, dtype=torch.float32, quantization=quantization)
    attach_adapters(model, r=4, lora_alpha=8, lora_dropout=0.0, seed=0)
    enable_gradient_checkpointing(model)
    model.train()
    widths, multiply = [], native.C.lora_linear

    def counted(**arguments):
        widths.append((arguments["x"].shape[1], arguments["y"].shape[1]))
        multiply(**arguments)

    monkeypatch.setattr(native.C, "lora_linear", counted)
    hidden = forward_hidden(model, pack(random_samples([7, 12])))
    forward = list(widths)
    widths.clear()
    hidden.square().sum().backward()
    assert forward.count((96, 64)) == 2  # down_proj, once a layer
    assert widths.count((96, 64)) == 0
    assert all(parameter.grad is not None for parameter in trainable_state(model).values())
