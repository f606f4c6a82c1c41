"""`pyft.ops.nf4` as on a GPU: what `pyft.ops.cuda.nf4` makes of kernels and matrix products."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference

from pyft.ops import reference
from pyft.ops.nf4 import nf4_linear


@pytest.mark.parametrize("tokens", [1, 64, 65, 200])
def test_linear(emulated_ops, tokens):
    weight = reference.nf4_quantize(torch.randn(36, 128))
    x = torch.randn(tokens, 128).bfloat16().requires_grad_()
    y = nf4_linear(x, weight)
    dense = reference.nf4_dequantize(weight, torch.bfloat16)
    exact = x.detach().double() @ dense.double().T
    assert_close_to_reference(y, exact, (x.detach().float() @ dense.float().T).bfloat16(), name="y")
