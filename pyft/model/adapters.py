"""Adapters on a model's linear layers: attach, find, merge. Their files are in adapter_files.py.

What an adapter computes is in the file of its type (layers/lora_linear.py). Left out: adapters on embeddings
or convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyft.errors import ConfigError
from pyft.model.layers.adapter_layer import AdapterLayer
from pyft.model.layers.frozen_linear import FrozenLinear, frozen, is_linear
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.layers.replace import linear_names, replace_module
from pyft.model.tensor_names import layer_free, shorten

ALL_LINEAR = "all-linear"

ADAPTER_TYPES: tuple[type[AdapterLayer], ...] = (LoRALinear,)
"""All there are, the usual one first; the first that takes the settings is the one."""


def adapter_maker(settings: Mapping[str, Any]) -> Callable[[FrozenLinear], AdapterLayer]:
    """Choose the type that computes what settings by PEFT's names ask for, and give it these.

    Where none does, the ValueError says what the first one cannot.
    """
    refusals = []
    for kind in ADAPTER_TYPES:
        try:
            return partial(kind, **kind.options(settings))
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]


def attach_adapters(
    model: nn.Module, *, target_modules: str | Sequence[str] = ALL_LINEAR, seed: int, **settings: Any
) -> list[str]:
    """Freeze the model and put an adapter on its linear layers; return their names in the model's order.

    `target_modules` "all-linear" is every linear layer but the output head; a list holds full names or ends
    of names at a dot, as in PEFT. The seed is of the initial values, and nothing else is drawn. The settings
    are the adapter's, by PEFT's names: r, lora_alpha, lora_dropout.
    """
    make_layer = adapter_maker(settings)
    names = matching_names(model, target_modules)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = make_layer(frozen(model.get_submodule(name)))
        layer.draw_(generator)
        replace_module(model, name, layer.train(model.training))
    return names


def matching_names(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """Find the layers of a model without adapters that `target_modules` means, in the model's order.

    An entry that matches nothing, or what is not linear, is a ConfigError.
    """
    available = linear_names(model)
    if target_modules == ALL_LINEAR:
        if not available:
            raise ConfigError(
                f"{type(model).__name__} has no linear layers to adapt (adapter.target_modules: all-linear): "
                "train it in full by leaving adapter out"
            )
        return available
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    modules = dict(model.named_modules())
    found: set[str] = set()
    problems = []
    for target in targets:
        matches = [name for name in modules if name == target or name.endswith(f".{target}")]
        linear = [name for name in matches if is_linear(modules[name])]
        if matches and len(linear) < len(matches):
            other = next(name for name in matches if name not in linear)
            problems.append(
                f"{target!r} matches {other}, a {type(modules[other]).__name__}, not a linear layer "
                "(adapter.target_modules): name only linear layers"
            )
        elif not matches:
            problems.append(f"no layer is called {target!r} (adapter.target_modules): {_choices(available)}")
        found.update(linear)
    if not targets:
        problems.append(f"no layer is named (adapter.target_modules): {_choices(available)}")
    if problems:
        raise ConfigError(problems)
    return [name for name in modules if name in found]


def _choices(names: list[str]) -> str:
    ends = sorted({pattern.rpartition(".")[2] for pattern in layer_free(names)})
    return f"the model has {shorten(ends, 16)}"


def adapted_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """Return the layers that carry an adapter by their names, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that training changes by their names, in the model's order, a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge_adapters(model: nn.Module) -> None:
    """Fold every adapter into a dense linear layer in its place; an NF4 base becomes dense float32."""
    for name, layer in adapted_layers(model).items():
        replace_module(model, name, layer.merged())
