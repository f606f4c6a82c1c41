"""The NF4 products for few tokens, csrc/cuda/nf4_gemm_small.cu, run on the CPU against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference
from torch import Tensor

from pyft.ops import native, reference
from pyft.ops.nf4 import NF4Weight

# (T, N, K, double_quant, blocks forward, blocks backward): every number of token tiles; sizes that end inside
# a tile, a step, a word of 8-bit scales; blocks that have whole tiles, share them, have one unit each, or so
# many that the ring of stages turns twice.
PRODUCTS = [
    (1, 16, 64, True, 1, 1),
    (3, 264, 320, False, 4, 7),
    (8, 128, 128, True, 1, 2),
    (9, 72, 1088, True, 1, 1),
    (16, 136, 192, True, 3, 2),
    (19, 40, 448, False, 4, 2),
    (33, 136, 128, True, 2, 3),
    (64, 64, 320, True, 2, 1),
]
DIRECTIONS = ["forward", "backward"]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_weight(rows: int, columns: int, double_quant: bool = True) -> NF4Weight:
    return reference.nf4_quantize(random(rows, columns, seed=1) * 0.1, double_quant=double_quant)


def run(
    kernels, direction: str, given: Tensor, weight: NF4Weight, num_blocks: int, bias=None, addend=(None, None)
) -> Tensor:
    width = weight.shape[direction == "backward"]
    out = torch.full((given.shape[0], width), float("nan"), dtype=torch.bfloat16)
    tile = 256 if direction == "backward" else 128
    workspace = torch.full((num_blocks * 2 * given.shape[0] * tile,), float("nan"))
    common = {"weight": tuple(weight), "num_blocks": num_blocks, "workspace": workspace}
    common |= {"num_threads": 1, "stream": 0}
    if direction == "forward":
        kernels.nf4_linear(x=given, y=out, bias=bias, projected=addend[0], lora_B=addend[1], **common)
    else:
        kernels.nf4_linear_backward(
            grad_y=given, grad_x=out, grad_projected=addend[0], lora_A=addend[1], **common
        )
    return out


def operand_of(direction: str, weight: NF4Weight) -> Tensor:
    dense = reference.nf4_dequantize(weight, torch.bfloat16)
    return dense.T if direction == "forward" else dense


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("tokens", "rows", "columns", "double_quant", "forward", "backward"), PRODUCTS)
def test_products(kernels, tokens, rows, columns, double_quant, forward, backward, direction):
    weight = make_weight(rows, columns, double_quant)
    operand = operand_of(direction, weight)
    given = random(tokens, operand.shape[0], seed=2, dtype=torch.bfloat16)
    num_blocks = forward if direction == "forward" else backward
    bias = random(rows, seed=3, dtype=torch.bfloat16) if direction == "forward" and tokens % 2 else None
    ours = run(kernels, direction, given, weight, num_blocks, bias)
    exact = given.double() @ operand.double() + (0.0 if bias is None else bias.double())
    torchs = given.float() @ operand.float() + (0.0 if bias is None else bias.float())
    assert_close_to_reference(ours, exact, torchs.bfloat16(), name=direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_bits_in_every_order_of_threads(emulated, direction):
    weight = make_weight(136, 320)
    given = random(5, weight.shape[direction == "forward"], seed=2, dtype=torch.bfloat16)
    results = []
    for seed in range(3):
        emulated.set_seed(seed)
        results.append(run(emulated, direction, given, weight, 4))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize(("tokens", "rank"), [(1, 4), (11, 16), (17, 64)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_low_rank_addend(emulated, direction, tokens, rank, num_blocks):
    """By the block that has a whole tile, and by the kernel that adds the parts of one."""
    weight = make_weight(200, 192)
    operand = operand_of(direction, weight)
    given = random(tokens, operand.shape[0], seed=2, dtype=torch.bfloat16)
    projected = random(tokens, rank, seed=4)
    shape = (200, rank) if direction == "forward" else (rank, 192)
    adapter = random(*shape, seed=5)
    added = adapter.T if direction == "forward" else adapter
    ours = run(emulated, direction, given, weight, num_blocks, None, (projected, adapter))
    exact = given.double() @ operand.double() + projected.double() @ added.double()
    torchs = (given.float() @ operand.float() + projected @ added).bfloat16()
    assert_close_to_reference(ours, exact, torchs, name=direction)


# ---- how the work is cut up -------------------------------------------------------------------------------

SHAPES = {
    "q": (4096, 4096),
    "kv": (1024, 4096),
    "gate": (14336, 4096),
    "down": (4096, 14336),
    "tiny": (8, 64),
}


def choose(tokens: int, shape: tuple[int, int], multiprocessors: int, *, is_backward: bool) -> dict:
    rows, columns = shape
    return native.C.choose_nf4_small(
        is_backward=is_backward,
        num_tokens=tokens,
        num_rows=rows,
        num_columns=columns,
        num_multiprocessors=multiprocessors,
    )


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("tokens", [1, 8, 9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_partition(shape, tokens, is_backward):
    for multiprocessors in (1, 108, 132, 170):
        chosen = choose(tokens, shape, multiprocessors, is_backward=is_backward)
        outer, inner = reversed(shape) if is_backward else shape
        assert 8 * chosen["token_tiles"] >= tokens > 4 * chosen["token_tiles"] * (chosen["token_tiles"] > 1)
        assert (chosen["num_tiles"] - 1) * chosen["tile"] < outer <= chosen["num_tiles"] * chosen["tile"]
        assert (chosen["num_steps"] - 1) * chosen["step"] < inner <= chosen["num_steps"] * chosen["step"]
        assert chosen["shared_bytes"] <= 99 << 10
        num_units, num_blocks = chosen["num_tiles"] * chosen["num_steps"], chosen["num_blocks"]
        assert 1 <= num_blocks <= 2 * multiprocessors and (num_blocks == 1 or num_units >= 4 * num_blocks)
        firsts = [block * num_units // num_blocks for block in range(num_blocks + 1)]
        has_whole_tiles = all(first % chosen["num_steps"] == 0 for first in firsts)
        assert (chosen["workspace_floats"] == 0) == has_whole_tiles
        assert has_whole_tiles or chosen["workspace_floats"] == num_blocks * 2 * tokens * chosen["tile"]


def test_the_partition_of_a_large_layer():
    assert choose(16, SHAPES["gate"], 132, is_backward=False) == {
        "token_tiles": 2,
        "tile": 128,
        "step": 128,
        "num_stages": 4,
        "shared_bytes": 99648,
        "num_tiles": 112,
        "num_steps": 32,
        "num_blocks": 264,
        "workspace_floats": 264 * 2 * 16 * 128,
    }
    with pytest.raises(ValueError, match=r"choose_nf4_small: 65 tokens, .* expected 1 to 64"):
        choose(65, SHAPES["q"], 132, is_backward=False)


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_it_cannot_take(emulated, direction):
    def refuse(message, shape=(16, 64), tokens=2, dtype=torch.bfloat16, num_blocks=1, **options):
        weight = make_weight(*shape)
        given = random(tokens, weight.shape[direction == "forward"], seed=2, dtype=dtype)
        with pytest.raises(ValueError, match=message):
            run(emulated, direction, given, weight, num_blocks, **options)

    refuse(r"bfloat16 \[65, \d+\], on cuda this takes bfloat16 with 1 to 64 tokens", tokens=65)
    refuse(r"weight is \[16, 72\], on cuda the sizes must be multiples of \d and 64", shape=(16, 72))
    refuse("num_blocks is 2, expected 1 to 1", num_blocks=2)
    refuse("num_blocks is 0, expected 1 to 1", num_blocks=0)
    width = 16 if direction == "forward" else 64
    adapter = torch.zeros((width, 6) if direction == "forward" else (6, width))
    refuse("expected a rank of 4 to 64 in fours", addend=(torch.zeros(2, 6), adapter))
    refuse("projected|adapter|lora", addend=(torch.zeros(2, 4), adapter))
    if direction == "backward":
        refuse(r"weight is \[20, 64\], on cuda the sizes must be multiples of 8 and 64", shape=(20, 64))


def test_a_workspace_that_is_too_small(emulated):
    weight, x = make_weight(136, 128), random(2, 128, seed=2, dtype=torch.bfloat16)
    y, part = torch.empty(2, 136, dtype=torch.bfloat16), make_weight(136, 256)
    wide = torch.cat([x, x], dim=1)
    with pytest.raises(ValueError, match="workspace has 7 elements, 3 blocks need 1536"):
        emulated.nf4_linear(
            x=wide,
            weight=tuple(part),
            bias=None,
            y=y,
            num_blocks=3,
            workspace=torch.empty(7),
            num_threads=1,
            stream=0,
        )
    emulated.nf4_linear(x=x, weight=tuple(weight), bias=None, y=y, num_blocks=2, num_threads=1, stream=0)


def test_the_cpu_takes_no_addend():
    weight, x = make_weight(16, 64), torch.ones(2, 64)
    with pytest.raises(ValueError, match="projected and adapter are for tensors on cuda"):
        native.C.nf4_linear(
            x=x,
            weight=tuple(weight),
            bias=None,
            y=torch.empty(2, 16),
            projected=torch.zeros(2, 4),
            lora_B=torch.zeros(16, 4),
            num_threads=1,
            stream=0,
        )
