"""An adapter in PEFT's layout: adapter_config.json and adapter_model.safetensors.

Nothing here is atomic: write into a staging folder and rename it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pyft.errors import ConfigError
from pyft.model.adapters import adapted_layers, adapter_maker, attach_adapters
from pyft.model.architecture import read_json
from pyft.model.tensor_names import shorten
from pyft.model.weight_files import write_safetensors, write_text
from pyft.run import layout

_PREFIX = "base_model.model."


def save_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    base_model: str | os.PathLike[str] | None,
) -> None:
    """Write the adapters of a model, and the base they belong to, as PEFT will look for it.

    A model that carries none is a ValueError.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("save_adapter: the model carries no adapters")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    first = next(iter(layers.values()))
    base = None if base_model is None else str(base_model)
    content = first.peft_config(base, target_ends(model, list(layers)))
    write_text(directory / layout.ADAPTER_CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    state = {name: parameter.detach().contiguous() for name, parameter in _tensors(model).items()}
    write_safetensors(directory / layout.ADAPTER_WEIGHTS, state)


def _tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters under the names that a file gives them."""
    return {
        f"{_PREFIX}{name}.{suffix}": parameter
        for name, layer in adapted_layers(model).items()
        for suffix, parameter in layer.peft_tensors().items()
    }


def target_ends(model: nn.Module, names: list[str]) -> list[str]:
    """Write the names of the adapted layers as their last parts, as other tools expect, sorted.

    Where a last part would match another module too, the full names are returned.
    """
    ends = sorted({name.rpartition(".")[2] for name in names})
    inside = tuple(f"{name}." for name in names)
    matched = {
        name
        for name, _ in model.named_modules()
        if not name.startswith(inside) and any(name == end or name.endswith(f".{end}") for end in ends)
    }
    return ends if matched == set(names) else sorted(names)


def apply_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Attach a saved adapter to its base; one that does not fit is a ConfigError."""
    attach_adapters(model, seed=0, **read_adapter_config(folder))
    load_adapter_weights(model, folder)


def read_adapter_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read adapter_config.json of an adapter that this package can apply.

    One that is absent, broken, or of a kind that would be applied wrongly is a ConfigError.
    """
    path = Path(directory) / layout.ADAPTER_CONFIG
    if not path.is_file():
        raise ConfigError(f"no {layout.ADAPTER_CONFIG} ({directory}): not an adapter folder")
    content = read_json(path, layout.ADAPTER_CONFIG)
    try:
        adapter_maker(content)
    except ValueError as error:
        what, _, why = str(error).partition(": ")
        raise ConfigError(f"{what} ({path}): {why}") from error
    if not content.get("target_modules"):
        raise ConfigError(f"target_modules is empty ({path})")
    return content


def load_adapter_weights(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Read adapter weights into the adapters a model already carries; all of them, and nothing else.

    An absent or corrupt file, and missing, unexpected or misshapen tensors are a ConfigError.
    """
    path = Path(directory) / layout.ADAPTER_WEIGHTS
    if not path.is_file():
        raise ConfigError(f"no {layout.ADAPTER_WEIGHTS} ({directory}): not a complete adapter folder")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the adapter is cut short or corrupt ({path}): {error}") from error
    wanted = _tensors(model)
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
