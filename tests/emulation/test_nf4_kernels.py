"""The NF4 kernels of csrc/cuda, run on the CPU, to the bit: quantise and dequantise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyft.ops import native, nf4, reference
from pyft.ops.nf4 import NF4Weight

# Below, at and beyond a block of 64, a thread's 8, a round of 2048 and a CUDA block of 8192 weights.
SIZES = [1, 2, 7, 63, 64, 65, 129, 2048, 8191, 8192, 8200, 20_001]
RUN = {"num_threads": 1, "stream": 0}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else 0xEE, dtype=dtype)


def quantize(kernels, weight: Tensor) -> tuple[Tensor, Tensor]:
    codes = poisoned((weight.numel() + 1) // 2, dtype=torch.uint8)
    absmax = poisoned((weight.numel() + 63) // 64, dtype=torch.float32)
    kernels.nf4_quantize(weight=weight, codes=codes, absmax=absmax, **RUN)
    return codes, absmax


def dequantize(kernels, weight: NF4Weight, dtype: torch.dtype) -> Tensor:
    out = poisoned(*weight.shape, dtype=dtype)
    kernels.nf4_dequantize(weight=tuple(weight), out=out, **RUN)
    return out


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_quantize_gives_the_codes_of_the_format(kernels, size, dtype):
    weight = random(1, size, seed=size, dtype=dtype)
    expected = reference.nf4_quantize(weight, double_quant=False)
    codes, absmax = quantize(kernels, weight)
    assert_same_bits(codes, expected.codes)
    assert_same_bits(absmax, expected.absmax)


def test_quantize_of_zeros_infinities_and_nan_is_the_cpus(kernels):
    weight = random(5, 64)
    weight[0] = 0
    weight[1, 7] = float("inf")
    weight[2, 63] = float("nan")
    weight[3] *= 1e-40
    expected = nf4.nf4_quantize(weight, double_quant=False)
    codes, absmax = quantize(kernels, weight)
    assert_same_bits(codes, expected.codes)
    assert torch.equal(absmax.isnan(), expected.absmax.isnan())
    assert torch.equal(absmax.nan_to_num(), expected.absmax.nan_to_num())


def test_quantize_takes_pointers_that_are_not_aligned(kernels):
    weight = random(1, 201)[:, 1:]
    expected = reference.nf4_quantize(weight, double_quant=False)
    codes, absmax = quantize(kernels, weight)
    assert_same_bits(codes, expected.codes)
    assert_same_bits(absmax, expected.absmax)


@pytest.mark.parametrize("num_blocks", [1, 3, 255, 256, 257, 1500])
def test_nested_absmax(kernels, num_blocks):
    absmax = random(num_blocks, seed=num_blocks).abs() + 0.1
    for given in (None, absmax.double().mean().float()):
        codes = poisoned(num_blocks, dtype=torch.uint8)
        nested = poisoned((num_blocks + 255) // 256, dtype=torch.float32)
        offset = torch.tensor(float("nan"))
        kernels.nf4_quantize_absmax(
            absmax=absmax, given_offset=given, absmax_codes=codes, nested_absmax=nested, offset=offset, **RUN
        )
        torch.testing.assert_close(offset, absmax.double().mean().float(), rtol=1e-7, atol=0)
        # The CPU's kernel, which equals bitsandbytes where all of a block is the offset too.
        expected_codes, expected_nested, _ = nf4.nf4_quantize_absmax(absmax, offset)
        assert_same_bits(codes, expected_codes)
        assert_same_bits(nested, expected_nested)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_dequantize_gives_the_values_of_the_format(kernels, size, double_quant, dtype):
    weight = reference.nf4_quantize(random(1, size, seed=size), double_quant=double_quant)
    assert_same_bits(dequantize(kernels, weight, dtype), reference.nf4_dequantize(weight, dtype))


# (first row, rows, first column, columns) of [70, 320]: whole rows; columns at the start, inside, at the end.
RECTANGLES = [
    (0, 70, 0, 320),
    (9, 30, 0, 320),
    (69, 1, 0, 320),
    (0, 70, 0, 64),
    (3, 50, 64, 192),
    (64, 6, 256, 64),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [True, False])
def test_dequantize_a_rectangle(kernels, double_quant, dtype):
    weight = reference.nf4_quantize(random(70, 320), double_quant=double_quant)
    dense = reference.nf4_dequantize(weight, dtype)
    for row, rows, column, columns in RECTANGLES:
        for module in (kernels, native.C):  # of CUDA, and of the CPU
            out = poisoned(rows, columns, dtype=dtype)
            module.nf4_dequantize(weight=tuple(weight), out=out, first_row=row, first_column=column, **RUN)
            assert_same_bits(out, dense[row : row + rows, column : column + columns].contiguous())


def test_dequantize_refuses_other_rectangles(emulated):
    def refuse(shape, out, message, **first):
        weight = reference.nf4_quantize(random(*shape))
        for module in (emulated, native.C):
            with pytest.raises(ValueError, match=message):
                module.nf4_dequantize(weight=tuple(weight), out=torch.empty(out), **first, **RUN)

    refuse((8, 64), (8, 64), r"out of shape \[8, 64\] from row 1 and column 0", first_row=1)
    refuse((8, 64), (8, 64), r"lies outside the weight \[8, 64\]", first_column=-64)
    refuse((9, 65), (8, 65), r"first_row is 1, with 65 columns that is inside a block", first_row=1)
    refuse((8, 128), (8, 64), r"columns 32 to 96 of 128, .* multiples of 64", first_column=32)
    refuse((64, 130), (64, 64), r"columns 0 to 64 of 130, .* multiples of 64")


def test_dequantize_takes_pointers_that_are_not_aligned(kernels):
    weight = reference.nf4_quantize(random(1, 300))
    shifted = weight._replace(codes=torch.cat([weight.codes[:1], weight.codes])[1:])
    assert shifted.codes.data_ptr() % 4
    assert_same_bits(
        dequantize(kernels, shifted, torch.bfloat16), reference.nf4_dequantize(weight, torch.bfloat16)
    )
