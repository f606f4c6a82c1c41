"""Quantise the linear layers of a model that is loaded already."""

from __future__ import annotations

import torch
from torch import nn

from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module


def quantize_linears(
    model: nn.Module, *, double_quant: bool = True, device: str | torch.device | None = None
) -> list[str]:
    """Replace every linear layer but the output head by its NF4 form, one at a time.

    Args:
        model: changed in place; a float weight is let go as soon as its layer is quantised.
        double_quant: store absmax itself in 8 bits.
        device: where each layer goes before it is quantised; None leaves it where it is.

    Returns:
        Names of the replaced layers.
    """
    names = linear_names(model)
    for name in names:
        linear = model.get_submodule(name).to(device)
        replace_module(model, name, NF4Linear.from_linear(linear, double_quant=double_quant))
    return names
