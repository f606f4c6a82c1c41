"""Modules found by name, and replaced on the instance."""

from __future__ import annotations

from torch import nn

from pyft.model.layers.frozen_linear import is_linear


def linear_names(model: nn.Module) -> list[str]:
    """Name all linear layers of a causal language model but the output head, in the model's order."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in place of the one of that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
