"""LoRA on linear layers: attach, read, merge.

    y = x W^T + b + scaling * drop(x) A^T B^T,   A [R, K], B [N, R],   scaling = lora_alpha / R

W stays frozen, dense or NF4. A and B are float32 whatever the dtype of x. Initial values are PEFT's (A
uniform by Kaiming with a = sqrt(5), B zero), drawn from a seed of their own. Files are in
`save.py`.

Left out: DoRA, rank-stabilised scaling, adapters on embeddings or convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyft.errors import ConfigError
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module
from pyft.model.weight_files import layer_free, shorten

ALL_LINEAR = "all-linear"


def attach_adapters(
    model: nn.Module,
    *,
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    seed: int,
) -> list[str]:
    """Freeze the model and put a LoRA update on its linear layers. Names that match nothing are refused.

    Args:
        model: changed in place.
        r: rank.
        lora_alpha: scaling is lora_alpha / r.
        lora_dropout: in [0, 1).
        target_modules: "all-linear" is every linear layer but the output head; a list holds full names or
            ends of names at a dot, as in PEFT.
        seed: of A's initial values; nothing else is drawn.

    Returns:
        Names of the adapted layers.
    """
    names = matching_names(model, target_modules)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = LoRALinear(model.get_submodule(name), r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
        # Drawn on the CPU in the model's order, so that every device starts from the same values.
        start = torch.empty(layer.lora_A.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            layer.lora_A.copy_(start)
        layer.train(model.training)
        replace_module(model, name, layer)
    return names


def matching_names(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """Find the layers that `target_modules` means.

    Args:
        model: without adapters.
        target_modules: "all-linear", or full names and ends of names.

    Returns:
        Dotted names in the model's order.

    Raises:
        ConfigError: when nothing matches, an entry matches nothing, or one matches what is not linear.
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
        linear = [name for name in matches if isinstance(modules[name], nn.Linear | NF4Linear)]
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


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that carry an update.

    Args:
        model: any.

    Returns:
        Name -> layer, in the model's order; empty without adapters.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes.

    Args:
        model: any.

    Returns:
        Parameter name -> parameter, in the model's order, a tied one once.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge_adapters(model: nn.Module) -> None:
    """Fold every update into a dense linear layer in the place of the adapted one.

    Args:
        model: changed in place; an NF4 base becomes a dense float32 weight.
    """
    for name, layer in adapted_layers(model).items():
        merged = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        merged.weight = nn.Parameter(layer.merged_weight())
        merged.bias = layer.base.bias
        merged.train(layer.training)
        replace_module(model, name, merged)
