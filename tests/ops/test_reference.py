"""The plain-torch operations against bitsandbytes, and against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pyft.ops import reference

bitsandbytes = pytest.importorskip("bitsandbytes.functional", exc_type=ImportError)


@pytest.mark.parametrize("shape", [(64, 128), (3, 67), (1, 1), (130, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_equals_bitsandbytes(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = reference.nf4_quantize(weight, double_quant=False)
    assert torch.equal(ours.codes, codes.reshape(-1))
    assert torch.equal(ours.absmax, state.absmax)
    if shape[1] % 2 == 0:  # bitsandbytes runs torch.compile for odd rows, which takes half a minute
        expected = bitsandbytes.dequantize_4bit(codes, state).view(shape)
        assert torch.equal(reference.nf4_dequantize(ours, dtype), expected)


def test_nf4_dequantize_by_hand():
    codes = torch.tensor([0x0F, 0x70], dtype=torch.uint8)
    weight = reference.NF4Weight(codes, torch.tensor([2.0]), None, None, None, (1, 3))
    assert reference.nf4_dequantize(weight).tolist() == [[-2.0, 2.0, 0.0]]


def test_nested_absmax_equals_bitsandbytes_given_its_offset():
    weight = torch.randn(960, 512, generator=torch.Generator().manual_seed(2))
    _, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = reference.nf4_quantize(weight)
    assert abs(float(ours.offset - state.offset)) <= 1e-6
    assert torch.equal(reference.nested_codebook(), state.state2.code)
    absmax = reference.nf4_quantize(weight, double_quant=False).absmax
    codes, nested = reference.quantize_absmax(absmax, state.offset)
    assert torch.equal(codes, state.absmax)
    assert torch.equal(nested, state.state2.absmax)
    theirs = reference.NF4Weight(ours.codes, None, codes, nested, state.offset, ours.shape)
    packed = ours.codes.unsqueeze(1)
    assert torch.equal(reference.nf4_dequantize(theirs), bitsandbytes.dequantize_4bit(packed, state))


def test_lora_linear_by_hand():
    x, weight, bias = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 10.0]]), torch.tensor([100.0])
    lora_A, lora_B = torch.tensor([[1.0, 1.0]]), torch.tensor([[7.0]])
    mask = torch.tensor([[False, True]])
    y = reference.lora_linear(x, weight, lora_A, lora_B, scaling=0.5, dropout=0.25, mask=mask, bias=bias)
    assert y.item() == pytest.approx(132 + 0.5 * 7 * 3 / 0.75)
    y = reference.lora_linear(x, weight, lora_A, lora_B, scaling=0.5)
    assert y.item() == pytest.approx(32 + 0.5 * 7 * 5)


def test_cross_entropy_by_hand_and_float64():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]], dtype=torch.float64, requires_grad=True)
    loss = reference.cross_entropy(logits, torch.tensor([0, -1]), ignore_index=-1)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(math.log(4.0), abs=1e-15)
    loss.backward()
    assert torch.allclose(
        logits.grad, torch.tensor([[-0.75, 0.75], [0, 0]], dtype=torch.float64), atol=1e-15, rtol=0
    )
    assert reference.cross_entropy(logits.bfloat16(), torch.tensor([1, 1])).dtype == torch.float32


def test_linear_cross_entropy_is_the_product_then_the_loss():
    hidden, head = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    targets = torch.tensor([0, 6, -100, 2, 3])
    expected = -(hidden @ head.T).log_softmax(1)[[0, 1, 3, 4], [0, 6, 2, 3]].sum()
    assert reference.linear_cross_entropy(hidden, head, targets).item() == pytest.approx(
        expected.item(), abs=1e-12
    )
