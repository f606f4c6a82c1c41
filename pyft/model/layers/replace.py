"""Modules found by name, and replaced on the instance."""

from __future__ import annotations

from torch import nn

from pyft.model.layers.nf4_linear import NF4Linear


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear layers (dense or NF4) but the output head, in the model's order.

    Args:
        model: a causal language model.

    Returns:
        Dotted names.
    """
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | NF4Linear) and module is not head
    ]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in place of the one called `name`.

    Args:
        model: the root.
        name: dotted name below it.
        module: the new one.
    """
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
