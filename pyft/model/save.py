"""Write a model as a plain Hugging Face folder. Not atomic: write into a staging folder and rename it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.model.adapters import adapted_layers
from pyft.model.layers.frozen_linear import is_frozen
from pyft.model.weight_files import write_safetensors, write_text
from pyft.run import layout

MAX_SHARD_BYTES = 5 * 10**9


def save_model(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    dtype: torch.dtype,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json, generation_config.json and the weights under their base names, tied ones once.

    Args:
        model: dense, without adapters.
        directory: made if absent.
        dtype: in which floating-point weights are written, and which config.json names.
        max_shard_bytes: above this the weights go into shards with an index.

    Raises:
        ValueError: the model still carries adapters or quantised layers.
    """
    if adapted_layers(model) or any(is_frozen(module) for module in model.modules()):
        raise ValueError("save_model: merge the adapters into a dense model first")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    write_text(directory / layout.MODEL_CONFIG, model.config.to_json_string())
    if model.generation_config is not None:
        write_text(directory / layout.GENERATION_CONFIG, model.generation_config.to_json_string())

    state = _state_once(model)
    # Planned on tensors of the final dtype that occupy nothing, so that a shard is the largest thing ever
    # copied.
    planned = {name: torch.empty_like(t, dtype=_final(t, dtype), device="meta") for name, t in state.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_bytes)
    for filename, names in plan.filename_to_tensors.items():
        shard = {name: state[name].detach().to(_final(state[name], dtype)).contiguous() for name in names}
        write_safetensors(directory / filename, shard)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(directory / layout.WEIGHTS_INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _final(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _state_once(model: nn.Module) -> dict[str, Tensor]:
    """Return the state under its base names, a tensor with several names under the first of them."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
