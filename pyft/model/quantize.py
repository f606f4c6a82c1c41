"""Quantise the linear layers of a model that is loaded already."""

from __future__ import annotations

import torch
from torch import nn

from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module


def quantize_linears(
    model: nn.Module, *, double_quant: bool = True, device: str | torch.device | None = None
) -> list[str]:
    """Replace every linear layer but the output head by its NF4 form, one at a time; return their names.

    Each layer goes to `device`, if given, before it is quantised, and its float weight is let go after.
    """
    names = linear_names(model)
    for name in names:
        linear = model.get_submodule(name).to(device)
        replace_module(model, name, NF4Linear.from_linear(linear, double_quant=double_quant))
    return names
