"""LoRA: the formula, what is adapted, frozen and drawn, PEFT's files in both directions, merging."""

from __future__ import annotations

import json
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import pack, random_model, random_samples, saved_model
from transformers import AutoModelForCausalLM

from pyft.errors import ConfigError
from pyft.model import adapters
from pyft.model.adapter_files import apply_adapter, load_adapter_weights, read_adapter_config, save_adapter
from pyft.model.adapters import adapted_layers, attach_adapters, merge_adapters, trainable_state
from pyft.model.forward import forward_hidden
from pyft.model.layers.adapter_layer import AdapterLayer
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.load import enable_gradient_checkpointing, load_model

# peft 0.21 asks transformers 5.23+ under a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

LORA = {"r": 4, "lora_alpha": 6.0, "lora_dropout": 0.1, "seed": 3}


def tokens():
    return torch.tensor([random_samples([17])[0]])


def fill(model, seed=1):
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.2)


def adapted(
    folder, model_type="llama", quantization=None, dtype=torch.float32, target_modules="all-linear", **changes
):
    if not (folder / "config.json").exists():
        saved_model(folder, model_type, **changes)
    model = load_model(folder, dtype=dtype, quantization=quantization)
    attach_adapters(model, target_modules=target_modules, **LORA)
    return model


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_layer_computes_the_formula_and_its_gradients(tmp_path, quantization):
    model = adapted(tmp_path, "qwen2", quantization=quantization)
    fill(model)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 5, 64, requires_grad=True)
    weight = layer.base.dense_weight() if quantization else layer.base.weight
    a, b, x64 = (t.detach().double().requires_grad_() for t in (layer.lora_A, layer.lora_B, x))
    expected = x64 @ weight.double().T + layer.base.bias.double() + 6.0 / 4 * (x64 @ a.T @ b.T)
    actual = layer(x)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(actual)
    (actual * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for ours, reference in ((x, x64), (layer.lora_A, a), (layer.lora_B, b)):
        torch.testing.assert_close(ours.grad, reference.grad.float(), rtol=1e-4, atol=1e-4)


def test_only_the_adapters_train_and_start_as_in_peft(tmp_path):
    model = adapted(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(
        model(tokens()).logits, base(tokens()).logits, rtol=1e-5, atol=1e-5
    )  # B is zero
    state = trainable_state(model)
    assert len(state) == 2 * 14 and all(name.endswith(("lora_A", "lora_B")) for name in state)
    assert all(parameter.dtype == torch.float32 for parameter in state.values())
    layers = adapted_layers(model)
    for layer in layers.values():
        bound = 1 / layer.in_features**0.5  # kaiming_uniform with a = sqrt(5)
        assert layer.lora_B.count_nonzero() == 0
        assert 0.8 * bound < layer.lora_A.abs().max() <= bound
    first, second = list(layers.values())[:2]
    assert not torch.equal(first.lora_A, second.lora_A)


def test_start_depends_on_the_seed_alone(tmp_path):
    before = torch.random.get_rng_state()
    one = adapted(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    two = adapted(tmp_path, quantization="nf4")
    for name, parameter in trainable_state(one).items():
        assert torch.equal(parameter, trainable_state(two)[name])
    other = load_model(tmp_path, dtype=torch.float32)
    attach_adapters(other, **{**LORA, "seed": 4})
    assert not torch.equal(
        next(iter(trainable_state(other).values())), next(iter(trainable_state(one).values()))
    )


def test_dropout_only_in_training(tmp_path):
    model = adapted(tmp_path)
    fill(model)
    assert torch.equal(model(tokens()).logits, model(tokens()).logits)
    model.train()
    torch.manual_seed(0)
    first = model(tokens()).logits
    assert not torch.equal(first, model(tokens()).logits)
    torch.manual_seed(0)
    assert torch.equal(first, model(tokens()).logits)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gradients_flow_through_checkpointing_with_frozen_embeddings(tmp_path, quantization):
    batch = pack(random_samples([7, 12]))
    gradients = []
    for checkpointing in (False, True):
        model = adapted(tmp_path, quantization=quantization)
        fill(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
        model.train()
        torch.manual_seed(0)
        forward_hidden(model, batch).square().sum().backward()
        assert model.model.embed_tokens.weight.grad is None
        gradients.append([parameter.grad.clone() for parameter in trainable_state(model).values()])
    assert len(gradients[0]) == 28
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        # The dropout masks are drawn again in the recomputation: only the same ones give the same gradients.
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], 4),
        (["layers.0.self_attn.q_proj"], 1),
        (["model.layers.1.mlp.down_proj", "o_proj"], 3),
        (["lm_head", "q_proj"], 3),
    ],
)
def test_target_lists_match_as_in_peft(tmp_path, targets, expected):
    model = adapted(tmp_path, target_modules=targets)
    names = list(adapted_layers(model))
    assert len(names) == expected
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path),
        peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"),
    )
    assert {f"base_model.model.{name}" for name in names} == {
        name for name, module in theirs.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def test_all_linear_is_what_peft_adapts(tmp_path):
    names = list(adapted_layers(adapted(tmp_path, "phi3")))
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path),
        peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert [f"base_model.model.{name}" for name in names] == [
        name for name, module in theirs.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)
    ]


def test_targets_that_match_nothing_are_refused_with_the_names_there_are(tmp_path):
    for targets, match in (
        (
            ["q_prj"],
            r"no layer is called 'q_prj' \(adapter\.target_modules\): the model has down_proj, gate_proj",
        ),
        (["q_proj", "Wqkv"], "no layer is called 'Wqkv'"),
        (["mlp"], "a FusedMLP, not a linear layer"),
        ([], "no layer is named"),
    ):
        with pytest.raises(ConfigError, match=match):
            adapted(tmp_path, target_modules=targets)
    with pytest.raises(ConfigError, match="has no linear layers to adapt"):
        attach_adapters(random_model("gpt2", n_embd=64, n_head=4, n_layer=1), **LORA)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["layers.0.self_attn.q_proj"]])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_saved_adapter_loads_in_peft_with_equal_logits(tmp_path, model_type, targets, recwarn):
    base, folder = tmp_path / "base", tmp_path / "适配 器"
    model = adapted(base, model_type, target_modules=targets)
    fill(model)
    save_adapter(model, folder, base)
    dense = AutoModelForCausalLM.from_pretrained(base)
    loaded = peft.PeftModel.from_pretrained(dense, folder)
    ours = load_file(folder / "adapter_model.safetensors")
    theirs = peft.get_peft_model_state_dict(loaded)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
    assert not [w for w in recwarn if "missing" in str(w.message) or "unexpected" in str(w.message)]
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        AutoModelForCausalLM.from_pretrained(base)(tokens()).logits, model(tokens()).logits, atol=1e-2
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["lora_alpha"] == 6
    if targets == "all-linear":
        assert config["target_modules"] == [
            "down_proj",
            "gate_proj",
            "k_proj",
            "o_proj",
            "q_proj",
            "up_proj",
            "v_proj",
        ]


def test_adapter_saved_by_peft_loads_here(tmp_path):
    saved_model(tmp_path / "base")
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["q_proj", "up_proj"],
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        ),
    )
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "base", dtype=torch.float32)
    apply_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(model(tokens()).logits, theirs(tokens()).logits, rtol=1e-4, atol=1e-5)


def test_file_modes_follow_the_umask_and_links_are_replaced(tmp_path):
    model = adapted(tmp_path / "base")
    target = tmp_path / "precious"
    target.write_text("keep")
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).symlink_to(target)
    before = os.umask(0o027)
    try:
        save_adapter(model, folder, "base")
    finally:
        os.umask(before)
    assert target.read_text() == "keep"
    for file in folder.iterdir():
        assert not file.is_symlink() and file.stat().st_mode & 0o777 == 0o640, file


def test_loading_an_adapter_is_strict(tmp_path):
    folder = tmp_path / "adapter"
    model = adapted(tmp_path / "base")
    fill(model)
    save_adapter(model, folder, None)
    fresh = adapted(tmp_path / "base")
    load_adapter_weights(fresh, folder)
    for name, parameter in trainable_state(fresh).items():
        assert torch.equal(parameter, trainable_state(model)[name])
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    first = sorted(state)[0]
    for changed, match in (
        ({k: v for k, v in state.items() if k != first}, f"lacks tensors that the model expects .*{first}"),
        (
            {**state, "base_model.model.other.lora_A.weight": torch.ones(1)},
            "has tensors for layers that the model lacks",
        ),
        ({**state, first: torch.ones(3, 3)}, r"has shape \[3, 3\], the model expects"),
    ):
        save_file(changed, path)
        with pytest.raises(ConfigError, match=match):
            load_adapter_weights(fresh, folder)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="cut short or corrupt"):
        load_adapter_weights(fresh, folder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        load_adapter_weights(fresh, folder)


def test_adapters_that_would_be_applied_wrongly_are_refused(tmp_path):
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(content))
    read_adapter_config(tmp_path)
    for change in (
        {"use_dora": True}, {"peft_type": "IA3"}, {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"a": 1}},
        {"bias": "all"}, {"target_modules": []}, {"use_rslora": True},
    ):  # fmt: skip
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(ConfigError, match=next(iter(change))):
            read_adapter_config(tmp_path)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_adapter_config(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_merged_equals_base_and_adapter(tmp_path, quantization):
    model = adapted(tmp_path, "qwen2", quantization=quantization)
    fill(model)
    expected = model(tokens()).logits
    merge_adapters(model)
    assert not adapted_layers(model)
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)


def test_adapters_stay_float32_on_a_bfloat16_base(tmp_path):
    model = adapted(tmp_path, dtype=torch.bfloat16, quantization="nf4")
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, LoRALinear) and layer.lora_A.dtype == torch.float32
    assert layer(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="stay float32"):
        model.to(torch.bfloat16)


class _Scaled(AdapterLayer):
    """y = s (x W^T + b), s [N] begins at 1: a type that shares nothing with LoRA."""

    def __init__(self, base, *, ceiling):
        super().__init__(base)
        self.ceiling = ceiling
        self.scales = torch.nn.Parameter(torch.zeros(base.out_features))

    @classmethod
    def options(cls, settings):
        if settings.get("peft_type") != "SCALED":
            raise ValueError("peft_type is not SCALED: not supported")
        return {"ceiling": settings["ceiling"]}

    def draw_(self, generator):
        with torch.no_grad():
            self.scales.copy_(torch.rand(self.scales.shape, generator=generator).clamp(max=self.ceiling))

    def forward(self, x):
        return self.base(x) + self.scales * (x @ self.base.dense_weight().T)

    def merged_weight(self):
        return self.base.dense_weight() * (1 + self.scales.detach())[:, None]

    def peft_tensors(self):
        return {"scaled_s": self.scales}

    def peft_config(self, base_model, target_modules):
        return {"peft_type": "SCALED", "ceiling": self.ceiling, "target_modules": list(target_modules)}


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_another_type_of_adapter_needs_its_class_and_an_entry_in_the_table(
    tmp_path, monkeypatch, quantization
):
    monkeypatch.setattr(adapters, "ADAPTER_TYPES", (LoRALinear, _Scaled))
    with pytest.raises(ValueError, match="use_rslora is True"):
        adapters.adapter_maker({"r": 4, "use_rslora": True})
    assert isinstance(next(iter(adapted_layers(adapted(tmp_path)).values())), LoRALinear)
    model = load_model(tmp_path, dtype=torch.float32, quantization=quantization)
    settings = {"peft_type": "SCALED", "ceiling": 0.5}
    names = attach_adapters(model, target_modules=["q_proj", "down_proj"], seed=1, **settings)
    assert list(trainable_state(model)) == [f"{name}.scales" for name in names] and len(names) == 4
    save_adapter(model, tmp_path / "adapter", tmp_path)
    again = load_model(tmp_path, dtype=torch.float32, quantization=quantization)
    apply_adapter(again, tmp_path / "adapter")
    logits = model(tokens()).logits
    assert torch.equal(again(tokens()).logits, logits)
    merge_adapters(again)
    assert not adapted_layers(again)
    torch.testing.assert_close(again(tokens()).logits, logits, rtol=1e-4, atol=1e-5)
