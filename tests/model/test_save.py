"""Saved models: base names, the asked dtype, shards, tied weights once, loadable by transformers."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import random_samples, saved_model
from transformers import AutoModelForCausalLM

from pyft.model.adapters import attach_adapters
from pyft.model.architecture import init_model
from pyft.model.load import load_model
from pyft.model.save import save_model


def tokens():
    return torch.tensor([random_samples([17])[0]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 60_000])
def test_round_trip(tmp_path, tied, dtype, max_shard_bytes):
    saved_model(tmp_path / "base", "qwen3", tie_word_embeddings=tied)
    model = load_model(tmp_path / "base", dtype=torch.float32)
    save_model(model, tmp_path / "out", dtype, max_shard_bytes=max_shard_bytes)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.dtype == dtype
    for name, tensor in load_model(tmp_path / "base", dtype=dtype).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    again = load_model(tmp_path / "out", dtype=dtype)
    assert torch.equal(again(tokens()).logits, load_model(tmp_path / "base", dtype=dtype)(tokens()).logits)

    original = load_file(tmp_path / "base" / "model.safetensors")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    states = [load_file(file) for file in files]
    assert sorted(name for state in states for name in state) == sorted(original)
    assert all(tensor.dtype == dtype for state in states for tensor in state.values())
    if max_shard_bytes > 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
    else:
        assert len(files) > 2
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {n: f.name for f, s in zip(files, states, strict=True) for n in s}
        assert index["metadata"]["total_size"] == sum(t.nbytes for s in states for t in s.values())


def test_config_and_modes(tmp_path):
    model = init_model(
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2},
        vocab_size=33, eos_token_id=[1, 5], pad_token_id=0,
    )  # fmt: skip
    before = os.umask(0o022)
    try:
        save_model(model, tmp_path / "中 文", torch.bfloat16)
    finally:
        os.umask(before)
    config = json.loads((tmp_path / "中 文" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"
    assert not any("attn_implementation" in key for key in config)
    generation = json.loads((tmp_path / "中 文" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 5]
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "中 文").iterdir()} == {0o644}
    assert load_model(tmp_path / "中 文", dtype=torch.float32).generation_config.eos_token_id == [1, 5]


def test_a_full_disk_is_an_os_error(tmp_path):
    model = load_model(saved_folder(tmp_path / "base"), dtype=torch.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as caught:
            save_model(model, tmp_path / "out", torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG


def saved_folder(folder):
    saved_model(folder)
    return folder


def test_a_model_that_is_not_plain_is_refused(tmp_path):
    saved_model(tmp_path / "base")
    for quantization in (None, "nf4"):
        model = load_model(tmp_path / "base", dtype=torch.float32, quantization=quantization)
        if quantization is None:
            attach_adapters(model, r=2, lora_alpha=2, lora_dropout=0.0, seed=0)
        with pytest.raises(ValueError, match="merge the adapters"):
            save_model(model, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()
