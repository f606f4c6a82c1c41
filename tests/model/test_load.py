"""Loading: every tensor lands where it belongs, quantised or not; bad folders get one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SMALL, random_model, random_samples, saved_model
from transformers import AutoModelForCausalLM

from pyft.errors import ConfigError, NumericsError
from pyft.model.architecture import init_model
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names
from pyft.model.load import load_model
from pyft.model.weight_files import open_tensors, stored_dtype

CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("gemma2", {}),
    ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}),
    ("phi3", {}),
    ("mixtral", {"num_local_experts": 3}),
]
IDS = [f"{name}-{index}" for index, (name, _) in enumerate(CASES)]


def tokens():
    return torch.tensor([random_samples([17])[0]])


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def edit_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("model_type", "changes"), CASES, ids=IDS)
def test_dense_load_equals_transformers(tmp_path, model_type, changes):
    saved_model(tmp_path, model_type, **changes)
    ours = load_model(tmp_path, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(ours(tokens()).logits, theirs(tokens()).logits, rtol=1e-5, atol=1e-5)
    assert not ours.training
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    assert ours_state.keys() == theirs_state.keys()
    for name, tensor in theirs_state.items():
        assert torch.equal(ours_state[name], tensor), name
    tied = changes.get("tie_word_embeddings", False)
    if model_type in ("llama", "qwen3"):
        assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == tied


def test_weights_are_rounded_to_the_dtype_and_rotary_tables_stay_float32(tmp_path):
    saved = saved_model(tmp_path)
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name).bfloat16()), name
    table = ours.model.rotary_emb.inv_freq
    assert table.dtype == torch.float32
    assert torch.equal(table, saved.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_load_equals_quantising_the_loaded_layers(tmp_path, double_quant, dtype):
    saved_model(tmp_path, "qwen2")
    dense = load_model(tmp_path, dtype=dtype)
    ours = load_model(tmp_path, dtype=dtype, quantization="nf4", double_quant=double_quant)
    names = linear_names(dense)
    assert len(names) == 14
    assert linear_names(ours) == names
    for name in names:
        layer = ours.get_submodule(name)
        expected = NF4Linear.from_linear(dense.get_submodule(name), double_quant=double_quant)
        assert isinstance(layer, NF4Linear)
        assert (layer.absmax is None) == double_quant
        for part, tensor in expected.state_dict().items():
            assert torch.equal(layer.state_dict()[part], tensor), (name, part)
    assert type(ours.lm_head) is torch.nn.Linear
    assert ours.model.embed_tokens.weight.dtype == ours.model.norm.weight.dtype == dtype


def test_shards_are_read(tmp_path):
    saved = random_model("llama")
    saved.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_model(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(ours(tokens()).logits, saved(tokens()).logits, rtol=1e-5, atol=1e-5)
    next(iter(sorted(tmp_path.glob("model-*.safetensors")))).unlink()
    with pytest.raises(ConfigError, match="a file of the weights is missing"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["bin", "base"])
def test_other_layouts_go_through_transformers_and_say_so(tmp_path, kind, caplog):
    saved = random_model("llama")
    saved.save_pretrained(tmp_path)
    if kind == "bin":
        torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    else:  # names without the prefix `model.`, as a bare decoder is saved
        edit_tensors(tmp_path, lambda s: [s.__setitem__(k.removeprefix("model."), s.pop(k)) for k in list(s)])
    ours = load_model(tmp_path, dtype=torch.float32, quantization="nf4")
    assert len([r for r in caplog.records if "loaded whole by transformers" in r.message]) == 1
    q_proj = saved.model.layers[0].self_attn.q_proj
    assert torch.equal(ours.model.layers[0].self_attn.q_proj.codes, NF4Linear.from_linear(q_proj).codes)
    assert torch.equal(ours.lm_head.weight, saved.lm_head.weight)


def test_load_never_holds_the_float_weights(tmp_path):
    """400 MB of float weights in 4 layers: the resident peak grows by the NF4 weights and one tensor."""
    config = {
        **SMALL,
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_hidden_layers": 4,
    }
    model = init_model(
        {**config, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}, vocab_size=131
    )
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 380e6
    del model
    saved_model(small := tmp_path / "small")
    script = """
import sys, torch
from pyft.model.load import load_model
from pyft.model.peak_memory import peak_memory_bytes, reset_peak_memory
load_model(sys.argv[2], dtype=torch.float32, quantization="nf4")  # loads libraries beforehand
assert reset_peak_memory()
before = peak_memory_bytes()
model = load_model(sys.argv[1], dtype=torch.float32, quantization="nf4")
print(peak_memory_bytes() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(small)],
        capture_output=True, text=True, check=True, cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    largest = 1024 * 6656 * 4
    assert int(done.stdout) < size * 0.13 + 2.5 * largest < 0.31 * size


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_damaged_tensor_is_named(tmp_path, name, value):
    saved_model(tmp_path)
    edit_tensors(tmp_path, lambda state: state[name].view(-1)[3:4].fill_(value))
    with pytest.raises(NumericsError, match=f"tensor {name} holds NaN or infinity") as caught:
        load_model(tmp_path, dtype=torch.float32, quantization="nf4")
    assert caught.value.exit_code == 6


def test_a_damaged_tensor_is_named_when_transformers_reads(tmp_path):
    saved = saved_model(tmp_path)
    saved.model.norm.weight.data[0] = float("nan")
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NumericsError, match=r"tensor model\.norm\.weight holds NaN"):
        load_model(tmp_path, dtype=torch.float32)


def refused(folder, match, **options):
    with pytest.raises(ConfigError, match=match) as caught:
        load_model(folder, dtype=torch.float32, **options)
    assert all("\n" not in message for message in caught.value.messages)


def test_bad_folders(tmp_path):
    refused(tmp_path / "absent", "no such model folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no config\.json in the model folder")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "empty", "this is an adapter")
    folder = tmp_path / "带 空格"
    saved_model(folder)
    load_model(folder, dtype=torch.float32)
    refused(folder, "unknown quantization 'fp4'", quantization="fp4")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:50], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        refused(folder, "cut short or corrupt")
    weights.unlink()
    refused(folder, "no weights in the model folder")
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json cannot be read")


def test_bad_configs(tmp_path):
    saved_model(tmp_path)
    config = tmp_path / "config.json"
    original = config.read_text()
    edit_json(config, model_type="vit")
    refused(tmp_path, "vit is not a causal language model")
    edit_json(config, model_type="t5")
    refused(tmp_path, "not a causal language model")
    edit_json(config, model_type="unheard_of")
    refused(tmp_path, "unheard_of")
    edit_json(config, model_type="unheard_of", auto_map={"AutoConfig": "configuration_x.X"})
    refused(tmp_path, r"model\.trust_remote_code=true")
    config.write_text(original)
    edit_json(config, quantization_config={"quant_method": "bitsandbytes"})
    refused(tmp_path, "already quantised with bitsandbytes")
    config.write_text(original)
    edit_json(config, hidden_size=32, head_dim=16)
    refused(tmp_path, r"config\.json asks for")


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    saved_model(tmp_path)
    edit_tensors(
        tmp_path, lambda s: s.__setitem__("model.layers.0.extra", s.pop("model.layers.1.mlp.up_proj.weight"))
    )
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path, dtype=torch.float32)
    text = "\n".join(caught.value.messages)
    assert "missing tensors" in text and "model.layers.1.mlp.up_proj.weight" in text
    assert "unexpected tensors" in text and "model.layers.0.extra" in text


def test_tied_weights_that_differ_are_refused_and_equal_ones_accepted(tmp_path):
    saved = saved_model(tmp_path, tie_word_embeddings=True)
    edit_tensors(tmp_path, lambda s: s.__setitem__("lm_head.weight", saved.lm_head.weight.detach().clone()))
    assert torch.equal(load_model(tmp_path, dtype=torch.float32).lm_head.weight, saved.lm_head.weight)
    edit_tensors(tmp_path, lambda s: s.__setitem__("lm_head.weight", s["lm_head.weight"] + 1))
    refused(tmp_path, "ties .* but the files hold different values")


def test_computed_buffers_in_old_files_are_passed_over_aloud(tmp_path, caplog):
    saved_model(tmp_path)
    edit_tensors(
        tmp_path, lambda s: s.__setitem__("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8))
    )
    load_model(tmp_path, dtype=torch.float32)
    assert "rotary_emb.inv_freq" in caplog.text


def test_network_is_never_asked(tmp_path, monkeypatch):
    import socket

    def refuse(*_args, **_kwargs):
        raise AssertionError("tried to open a connection")

    saved_model(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model(tmp_path, dtype=torch.float32, quantization="nf4")


def test_stored_dtype(tmp_path):
    random_model("llama").bfloat16().save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == torch.bfloat16
    assert open_tensors(tmp_path / "..") is None


MAPPING = {key: value for key, value in SMALL.items() if key != "vocab_size" and not key.endswith("token_id")}


def test_init_is_deterministic_and_sets_the_special_tokens(tmp_path):
    options = {"vocab_size": 40, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 1}
    before = torch.random.get_rng_state()
    first = init_model({**MAPPING, "model_type": "qwen3"}, seed=5, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    again = init_model({**MAPPING, "model_type": "qwen3"}, seed=5, **options)
    other = init_model({**MAPPING, "model_type": "qwen3"}, seed=6, **options)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    for config in (first.config, first.generation_config):
        assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (3, 2, 1)
    assert first.get_input_embeddings().weight.shape == (40, 64)
    assert all(parameter.requires_grad for parameter in first.parameters())
    saved_model(tmp_path, "qwen3")
    half = init_model({**MAPPING, "model_type": "qwen3"}, seed=5, dtype=torch.bfloat16, **options)
    assert half.dtype == torch.bfloat16 and half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(half.lm_head.weight, first.lm_head.weight.bfloat16())
    from_folder = init_model(str(tmp_path), seed=5, **options)
    assert from_folder.lm_head.weight.shape == (40, 64)


def test_init_refuses_what_it_would_ignore():
    for mapping, match in (
        ({"model_type": "llama", "hidden_sise": 3}, "did you mean hidden_size"),
        ({"hidden_size": 3}, r"unknown architecture None \(model\.config\.model_type\)"),
        ({"model_type": "llama", "vocab_size": 10}, r"more than model\.config\.vocab_size: 10"),
        ({"model_type": "llama", "hidden_size": "wide"}, "llama refuses the settings"),
        ({"model_type": "vit"}, "vit"),
    ):
        with pytest.raises(ConfigError, match=match):
            init_model(mapping, vocab_size=20)
