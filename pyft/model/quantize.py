"""A linear layer whose weight is stored in 4-bit NF4.

    y = x W^T + b,   W = codebook[codes] * absmax   (blocks of 64 along the flattened weight)

The parts of the weight are buffers, so `.to(device)` and `state_dict()` carry them; none is trainable and
none changes dtype with the module. What multiplies is `pyft.ops.nf4`; this module only holds.
"""

from __future__ import annotations

from torch import nn

from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module


def quantize_linears(model: nn.Module, *, double_quant: bool = True) -> list[str]:
    """Replace every linear layer but the output head by its NF4 form, one at a time.

    Args:
        model: changed in place; a float weight is let go as soon as its layer is quantised.
        double_quant: store absmax itself in 8 bits.

    Returns:
        Names of the replaced layers.
    """
    names = linear_names(model)
    for name in names:
        replace_module(
            model, name, NF4Linear.from_linear(model.get_submodule(name), double_quant=double_quant)
        )
    return names
