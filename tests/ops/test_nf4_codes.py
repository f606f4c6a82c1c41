"""Which code a value takes: as in bitsandbytes for every bfloat16 value, beside bounds and at extremes."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb
from torch import Tensor

from pyft.ops.native import C
from pyft.ops.nf4 import nf4_dequantize, nf4_quantize


def assert_same_values(actual: Tensor, expected: Tensor) -> None:
    """With the sign of zero; a NaN equals a NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual.signbit() & ~actual.isnan(), expected.signbit() & ~expected.isnan())


@pytest.mark.parametrize(
    "block",
    [
        pytest.param([0.0] * 64, id="zeros"),
        pytest.param([-0.0] * 63, id="short, negative zeros"),
        pytest.param([1e-40, -1e-41] * 32, id="denormal"),
        pytest.param([1e-40] * 3, id="short, denormal"),
        pytest.param([3e38, -3e38] * 32, id="near overflow"),
        pytest.param([float("nan")] + [1.0] * 63, id="nan"),
        pytest.param([float("inf"), 1.0] * 32, id="inf"),
        pytest.param([1.0, float("nan"), 2.0], id="short, nan"),
    ],
)
def test_extreme_blocks_equal_bitsandbytes(block):
    weight = torch.tensor([block])
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    ours = nf4_quantize(weight, double_quant=False)
    assert torch.equal(ours.codes, packed.view(-1))
    assert_same_values(ours.absmax, state.absmax)
    assert_same_values(nf4_dequantize(ours), bnb.dequantize_4bit(packed, state).view(1, -1))


def assert_blocks_equal_bitsandbytes(values: Tensor, scales: Tensor) -> Tensor:
    """Quantise row i of `values` in blocks of 63 beside scales[i], which is what they are divided by."""
    values = torch.cat([values, values.new_zeros(len(values), -values.shape[1] % 63)], 1)
    values = values.view(len(values), -1, 63)
    weight = torch.cat([values, scales[:, None, None].expand(-1, values.shape[1], 1)], 2).view(-1, 64)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    ours = nf4_quantize(weight, double_quant=False)
    assert torch.equal(ours.codes, packed.view(-1))
    assert_same_values(ours.absmax, state.absmax)
    return ours.codes


SCALES = [1.0, 0.0177, 2.0**-126, 2.0**-127, 1e-38, 1e-40, 3.3895e38, 2.0**127, float("inf"), float("nan")]


@pytest.mark.parametrize("scale", SCALES)
def test_every_bfloat16_value_equals_bitsandbytes(scale):
    """Those of at most the block's scale, both zeros and denormal ones among them."""
    every = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.bfloat16)
    scale = torch.tensor([scale]).bfloat16()
    inside = every if scale.isnan() else every[every.abs() <= scale]
    assert_blocks_equal_bitsandbytes(inside[None], scale)


@pytest.mark.parametrize("exponent", [0, 1, 2, 60, 127, 253, 254])
def test_every_bfloat16_scale_equals_bitsandbytes(exponent):
    """All 128 scales of an exponent, each with every value that is not far below the bounds nearest zero."""
    scales = exponent * 128 + torch.arange(1 if exponent == 0 else 0, 128, dtype=torch.int16)
    values = (scales[:, None] - torch.arange(7 * 128, dtype=torch.int16)).clamp(min=0).view(torch.bfloat16)
    codes = assert_blocks_equal_bitsandbytes(torch.cat([values, -values], 1), scales.view(torch.bfloat16))
    assert exponent == 0 or len(torch.cat([codes >> 4, codes & 15]).unique()) == 16


def test_float32_beside_the_bounds_equals_bitsandbytes():
    """Within 8 roundings of each bound, for scales near 1 and at both ends of the range."""
    codebook = torch.tensor(C.nf4_codebook())
    bounds = (codebook[1:] + codebook[:-1]) / 2
    generator = torch.Generator().manual_seed(3)
    mantissas = torch.cat([torch.ones(1), 1 + torch.rand(99, generator=generator)])
    scales = torch.cat([mantissas, mantissas * 1e-38, mantissas * 1.6e38])
    middles = (scales[:, None] * bounds).view(torch.int32)
    near = (middles[:, :, None] + torch.arange(-8, 9, dtype=torch.int32)).view(torch.float32)
    codes = assert_blocks_equal_bitsandbytes(near.reshape(len(scales), -1), scales)
    assert len(torch.cat([codes >> 4, codes & 15]).unique()) == 16
