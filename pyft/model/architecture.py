"""Configs and models without weights: read a folder's config, build the modules, start from random weights.

All transformers classes are reached through the Auto factories; nothing here opens the network.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pyft.errors import ConfigError, first_line
from pyft.model.attention import register_packed_attention
from pyft.model.layers.fused import fuse_activations
from pyft.run.layout import ADAPTER_CONFIG, MODEL_CONFIG

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def quiet_transformers() -> None:
    """Switch off transformers' progress bars and remarks; what matters is checked and said here."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; a ConfigError says `what` cannot be read, or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} cannot be read ({path}): {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{what} is not a JSON object ({path})")
    return content


def read_config(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read the config of a local model folder, named by itself or by its `config.json`.

    No folder, no config, an unknown architecture, and code that is not allowed to run are a ConfigError.
    """
    folder = Path(path)
    if folder.name == MODEL_CONFIG:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"no such model folder ({folder}): give a local folder in Hugging Face format")
    file = folder / MODEL_CONFIG
    if not file.is_file():
        hint = ""
        if (folder / ADAPTER_CONFIG).is_file():
            hint = "; this is an adapter: give its base model, or merge it first with python -m pyft.merge"
        raise ConfigError(f"no config.json in the model folder ({folder}): not a Hugging Face model{hint}")
    content = read_json(file, MODEL_CONFIG)
    if content.get("auto_map") and not trust_remote_code and not _is_known(content.get("model_type")):
        raise ConfigError(
            f"the model's architecture is Python code in its folder ({folder}): "
            "read that code, then allow it with model.trust_remote_code=true"
        )
    if content.get("quantization_config"):
        method = content["quantization_config"].get("quant_method", "?")
        raise ConfigError(
            f"the model is already quantised with {method} ({file}): give the original float weights; "
            "model.quantization: nf4 quantises them while loading"
        )
    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ConfigError(f"config.json is not usable ({file}): {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise ConfigError(f"{config.model_type} is an encoder-decoder, not a causal language model ({file})")
    return config


def config_from_mapping(mapping: Mapping[str, Any]) -> PreTrainedConfig:
    """Make a config from `model_type` and the architecture's own keys, as in `config.json`.

    No or an unknown model_type, an unknown key, and values the architecture refuses are a ConfigError.
    """
    values = dict(mapping)
    model_type = values.pop("model_type", None)
    if not _is_known(model_type):
        raise ConfigError(
            f"unknown architecture {model_type!r} (model.config.model_type): for example llama or qwen3"
        )
    quiet_transformers()
    defaults = AutoConfig.for_model(model_type)
    known = {
        *defaults.to_dict(),
        *defaults.attribute_map,
        "architectures",
        "dtype",
        "rope_theta",
        "rope_scaling",
    }
    problems = []
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            problems.append(f"{model_type} has no such setting (model.config.{key}){hint}")
    if problems:
        raise ConfigError(problems)
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:
        raise ConfigError(f"{model_type} refuses the settings (model.config): {first_line(error)}") from error


class _ParametersOnMeta(TorchFunctionMode):
    """Give uninitialised tensors no storage, while everything computed (rotary tables) becomes real.

    Layers allocate their weights with torch.empty; buffers that no checkpoint holds are computed with arange,
    ones and the like. So the constructor itself leaves exactly the weights without memory, for any
    architecture.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def empty_model(
    config: PreTrainedConfig, *, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build a model with pyft's attention whose weights are on the meta device; rotary tables are real."""
    with _ParametersOnMeta():
        return _from_config(config, dtype, trust_remote_code)


def _from_config(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    quiet_transformers()
    if getattr(config, "attention_chunk_size", None):
        raise ConfigError(
            f"{config.model_type} attends in chunks (config.json: attention_chunk_size): not supported"
        )
    try:
        return AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=register_packed_attention(),
            trust_remote_code=trust_remote_code,
        )
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise ConfigError(
                f"{config.model_type} is not a causal language model (config.json: model_type)"
            ) from error
        raise ConfigError(f"{config.model_type} cannot be built: {first_line(error)}") from error


def init_model(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    vocab_size: int,
    eos_token_id: int | list[int] | None = None,
    bos_token_id: int | None = None,
    pad_token_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 42,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a model with random weights, the same for the same seed whatever was drawn before.

    Args:
        config: a model folder, a config.json, or a mapping with `model_type`.
        vocab_size: length of the tokenizer; used where the config names none or a folder's is replaced.
        eos_token_id: end-of-text id or ids, written to config and generation_config.
        bos_token_id: begin-of-text id, likewise.
        pad_token_id: padding id, likewise.
        dtype: of the weights, which are drawn in float32 and rounded.
        seed: of the weights.
        device: where they go.
        trust_remote_code: allow Python code shipped in the folder to run.

    Returns:
        The model in evaluation mode; every weight is trainable.

    Raises:
        ConfigError: an unusable config, or a vocab_size in the mapping smaller than the tokenizer's.
    """
    ids = {"eos_token_id": eos_token_id, "bos_token_id": bos_token_id, "pad_token_id": pad_token_id}
    if isinstance(config, Mapping):
        given = config.get("vocab_size", vocab_size)
        if isinstance(given, int) and given < vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} entries, more than model.config.vocab_size: {given}; "
                "raise it or leave it out"
            )
        config = config_from_mapping({**ids, **config, "vocab_size": given})
    else:
        config = read_config(config, trust_remote_code=trust_remote_code)
        config.vocab_size = vocab_size
    for name, value in ids.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_config(config, torch.float32, trust_remote_code)
    model.generation_config = GenerationConfig(**ids)
    # Parameters only: rotary tables stay float32, as transformers keeps them.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    config.dtype = dtype
    model = model.to(device)
    fuse_activations(model)
    return model.eval()


def untie_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Group the names of each tensor in the model's state: first name -> all, several where it is tied.

    Buffers that no checkpoint holds are left out.
    """
    first_name: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            first = first_name.setdefault(id(tensor), name)
            groups.setdefault(first, []).append(name)
    return groups


def _is_known(model_type: object) -> bool:
    """Say whether transformers itself has the architecture."""
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING
