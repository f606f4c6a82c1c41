"""Write files: a model as a plain Hugging Face folder, an adapter in PEFT's layout, and read the latter back.

Files get the mode that the umask gives (safetensors alone writes 0600), a link in the way is replaced, never
followed. Nothing here is atomic: write into a staging folder and rename it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.errors import ConfigError
from pyft.model.adapters import adapted_layers
from pyft.model.architecture import read_json
from pyft.model.weight_files import INDEX, shorten

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_SHARD_BYTES = 5 * 10**9
_PREFIX = "base_model.model."


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
        ValueError: when the model still carries adapters or quantised layers.
    """
    from pyft.model.layers.nf4_linear import NF4Linear

    if any(isinstance(module, NF4Linear) for module in model.modules()) or adapted_layers(model):
        raise ValueError("save_model: merge the adapters into a dense model first")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    write_text(directory / "config.json", model.config.to_json_string())
    if model.generation_config is not None:
        write_text(directory / "generation_config.json", model.generation_config.to_json_string())

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
        write_text(directory / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _final(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _state_once(model: nn.Module) -> dict[str, Tensor]:
    """The state under its base names, a tensor with several names under the first of them."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def save_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    base_model_name_or_path: str | os.PathLike[str] | None,
) -> None:
    """Write the adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.

    Args:
        model: with adapters attached.
        directory: made if absent.
        base_model_name_or_path: what the adapter belongs to, as PEFT will look for it.

    Raises:
        ValueError: when the model carries no adapters.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("save_adapter: the model carries no adapters")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    first = next(iter(layers.values()))
    alpha = first.lora_alpha
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base_model_name_or_path is None else str(base_model_name_or_path),
        "r": first.r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": first.lora_dropout,
        "target_modules": target_ends(model, list(layers)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    state = {}
    for name, layer in layers.items():
        state[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().contiguous()
        state[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().contiguous()
    write_text(directory / ADAPTER_CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_safetensors(directory / ADAPTER_WEIGHTS, state)


def target_ends(model: nn.Module, names: list[str]) -> list[str]:
    """Write the adapted layers as ends of names, as other tools expect, where those mean just these.

    Args:
        model: with adapters.
        names: of the adapted layers.

    Returns:
        Sorted last parts of the names; the full names where a last part would match another module too.
    """
    ends = sorted({name.rpartition(".")[2] for name in names})
    inside = tuple(f"{name}." for name in names)
    matched = {
        name
        for name, _ in model.named_modules()
        if not name.startswith(inside) and any(name == end or name.endswith(f".{end}") for end in ends)
    }
    return ends if matched == set(names) else sorted(names)


def read_adapter_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read adapter_config.json of a LoRA adapter that this package can apply.

    Args:
        directory: of the adapter.

    Returns:
        Its content.

    Raises:
        ConfigError: absent, broken, or of a kind that would be applied wrongly.
    """
    path = Path(directory) / ADAPTER_CONFIG
    if not path.is_file():
        raise ConfigError(f"no {ADAPTER_CONFIG} ({directory}): not an adapter folder")
    content = read_json(path, ADAPTER_CONFIG)
    if content.get("peft_type") != "LORA" or not isinstance(content.get("r"), int):
        raise ConfigError(
            f"peft_type is {content.get('peft_type')!r} ({path}): only LORA adapters are supported"
        )
    neutral = {"bias": "none", "fan_in_fan_out": False}
    settings = (
        "use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "exclude_modules", "target_parameters", "trainable_token_indices",
        "lora_bias", "bias", "fan_in_fan_out",
    )  # fmt: skip
    for name in settings:
        value = content.get(name)
        if value and value != neutral.get(name):
            raise ConfigError(f"{name} is {value!r} ({path}): not supported")
    if not content.get("target_modules"):
        raise ConfigError(f"target_modules is empty ({path})")
    return content


def load_adapter_weights(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Read adapter weights into the adapters a model already carries; all of them, and nothing else.

    Args:
        model: with adapters attached.
        directory: with adapter_model.safetensors in PEFT's layout.

    Raises:
        ConfigError: absent or corrupt file, missing, unexpected or misshapen tensors.
    """
    path = Path(directory) / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ConfigError(f"no {ADAPTER_WEIGHTS} ({directory}): not a complete adapter folder")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the adapter is cut short or corrupt ({path}): {error}") from error
    wanted = {}
    for name, layer in adapted_layers(model).items():
        wanted[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        wanted[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B
    problems = []
    if missing := sorted(set(wanted) - set(state)):
        problems.append(f"the adapter lacks tensors that the model expects ({path}): {shorten(missing)}")
    if surplus := sorted(set(state) - set(wanted)):
        problems.append(
            f"the adapter has tensors for layers that the model lacks ({path}): {shorten(surplus)}"
        )
    for name in sorted(set(wanted) & set(state)):
        if state[name].shape != wanted[name].shape:
            have, want = list(state[name].shape), list(wanted[name].shape)
            problems.append(
                f"tensor {name} has shape {have}, the model expects {want} ({path}): another base model?"
            )
            break
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write one safetensors file with the mode the umask gives.

    Args:
        path: replaced if there; a link is not followed.
        state: contiguous tensors.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        SafetensorError: anything else that safetensors refuses.
    """
    path.unlink(missing_ok=True)
    try:
        save_file(state, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A full disk comes as text only; callers tell it from a mistake by its number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    # The umask can only be read by setting it; the value in between is the strictest.
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_text(path: Path, text: str) -> None:
    """Write one UTF-8 text file.

    Args:
        path: replaced if there; a link is not followed.
        text: its content.
    """
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
