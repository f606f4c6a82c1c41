"""The LoRA kernels of csrc/cuda, run on the CPU, each against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, random
from torch import Tensor

from pyft.ops.dropout import dropout_mask

RUN = {"num_threads": 1, "stream": 0}
DTYPES = [torch.float32, torch.bfloat16]
SCALING, SEED = 0.25, 0x1234_5678_9ABC_DEF0
# (T, W, R): one token; tiles that end inside; several tiles and panels; every padding of the rank; slices.
SHAPES = [(1, 8, 1), (19, 136, 8), (70, 300, 16), (65, 257, 33), (3, 129, 150), (0, 40, 4)]


def values(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(*shape, seed=seed, dtype=dtype).detach()


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def parts(num_parts: int, result: Tensor | None) -> Tensor | None:
    return None if num_parts == 1 or result is None else nan(num_parts, *result.shape)


def dropped(x: Tensor, dropout: float, dtype: torch.dtype) -> Tensor:
    mask = dropout_mask(x.shape, dropout, SEED)
    return (x.to(dtype) / (1.0 - dropout)).masked_fill(~mask, 0.0)


def check(ours: Tensor, formula, name: str) -> None:
    """`formula` takes the dtype to work in: float64, or float32 and then the result is rounded to `ours`'."""
    assert_close_to_reference(ours, formula(torch.float64), formula(torch.float32).to(ours.dtype), name=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "rank"), SHAPES)
def test_project(kernels, tokens, width, rank, dtype, dropout):
    x, lora_A = values(tokens, width, seed=1, dtype=dtype), values(rank, width, seed=2)
    drop = {"scaling": SCALING, "dropout": dropout, "seed": SEED} | RUN

    def formula(wide: torch.dtype) -> Tensor:
        return SCALING * dropped(x, dropout, wide) @ lora_A.to(wide).T

    for num_parts in {
        1,
        2,
        kernels.plan_lora(num_tokens=tokens, num_columns=width, rank=rank)["project_parts"],
    }:
        projected = nan(tokens, rank)
        kernels.lora_project(
            x=x, lora_A=lora_A, projected=projected, workspace=parts(num_parts, projected), **drop
        )
        check(projected, formula, f"S in {num_parts} parts")


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "rank"), SHAPES)
def test_expand(kernels, tokens, width, rank, dtype, accumulate):
    projected, lora_B = values(tokens, rank, seed=1), values(width, rank, seed=2)
    before, bias = values(tokens, width, seed=3, dtype=dtype), values(width, seed=4, dtype=dtype)
    y = before.clone() if accumulate else torch.full_like(before, float("nan"))
    kernels.lora_expand(
        projected=projected,
        lora_B=lora_B,
        bias=None if accumulate else bias,
        y=y,
        accumulate=accumulate,
        **RUN,
    )
    add = before if accumulate else bias
    check(y, lambda wide: projected.to(wide) @ lora_B.to(wide).T + add.to(wide), "y")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "rank"), SHAPES)
def test_expand_backward(kernels, tokens, width, rank, dtype, accumulate, dropout):
    grad_projected, lora_A = values(tokens, rank, seed=1), values(rank, width, seed=2)
    before = values(tokens, width, seed=3, dtype=dtype)
    grad_x = before.clone() if accumulate else torch.full_like(before, float("nan"))
    kernels.lora_expand_backward(
        grad_projected=grad_projected, lora_A=lora_A, grad_x=grad_x, accumulate=accumulate, dropout=dropout,
        seed=SEED, **RUN,
    )  # fmt: skip

    def formula(wide: torch.dtype) -> Tensor:
        added = dropped(grad_projected.to(wide) @ lora_A.to(wide), dropout, wide)
        return added + before.to(wide) if accumulate else added

    check(grad_x, formula, "dX")


@pytest.mark.parametrize("wanted", ["both", "dS", "dB"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "rank"), SHAPES)
def test_grad(kernels, tokens, width, rank, dtype, wanted):
    grad_y, lora_B = values(tokens, width, seed=1, dtype=dtype), values(width, rank, seed=2)
    projected = values(tokens, rank, seed=3)
    plan = kernels.plan_lora(num_tokens=tokens, num_columns=width, rank=rank)
    for column_parts in {1, plan["column_parts"]}:
        grad_projected = nan(tokens, rank) if wanted != "dB" else None
        grad_B = nan(width, rank) if wanted != "dS" else None
        kernels.lora_grad(
            grad_y=grad_y, lora_B=lora_B, projected=None if wanted == "dS" else projected,
            grad_projected=grad_projected, grad_B=grad_B, scaling=SCALING,
            row_workspace=parts(plan["project_parts" if wanted == "dS" else "row_parts"], grad_projected),
            column_workspace=parts(column_parts, grad_B), **RUN,
        )  # fmt: skip
        if grad_projected is not None:
            check(grad_projected, lambda wide: SCALING * grad_y.to(wide) @ lora_B.to(wide), "dS")
        if grad_B is not None:
            check(grad_B, lambda wide: grad_y.to(wide).T @ projected.to(wide), "dB")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "rank"), SHAPES)
def test_grad_A(kernels, tokens, width, rank, dtype, dropout):
    x, grad_projected = values(tokens, width, seed=1, dtype=dtype), values(tokens, rank, seed=2)
    column_parts = kernels.plan_lora(num_tokens=tokens, num_columns=width, rank=rank)["column_parts"]
    grad_A = nan(rank, width)
    kernels.lora_grad_A(
        x=x, grad_projected=grad_projected, grad_A=grad_A, workspace=parts(column_parts, grad_A),
        dropout=dropout, seed=SEED, **RUN,
    )  # fmt: skip
    check(grad_A, lambda wide: grad_projected.to(wide).T @ dropped(x, dropout, wide), "dA")


@pytest.mark.parametrize("seed", [0, 2**62 + 12345])
@pytest.mark.parametrize("width", [64, 33])
def test_mask_is_the_defined_one(kernels, width, seed):
    tokens, dropout = 20, 0.4
    mask = dropout_mask((tokens, width), dropout, seed).float() / (1.0 - dropout)
    projected, grad_x = nan(tokens, width), nan(tokens, width)
    eye, drop = torch.eye(width), {"dropout": dropout, "seed": seed} | RUN
    kernels.lora_project(
        x=torch.ones(tokens, width), lora_A=eye, projected=projected, workspace=None, scaling=1.0,
        **drop,
    )  # fmt: skip
    kernels.lora_expand_backward(
        grad_projected=torch.ones(tokens, width),
        lora_A=eye,
        grad_x=grad_x,
        accumulate=False,
        **drop,
    )
    assert torch.equal(projected, mask) and torch.equal(grad_x, mask)


def test_pointers_and_rows_that_are_not_aligned(kernels):
    tokens, rank = 5, 4
    for width in (64, 61):
        x = torch.zeros(tokens * width + 1).bfloat16()[1:].view(tokens, width)
        assert x.data_ptr() % 16 and x.is_contiguous()
        x.copy_(values(tokens, width, seed=1))
        lora_A, projected = values(rank, width, seed=2), nan(tokens, rank)
        kernels.lora_project(
            x=x, lora_A=lora_A, projected=projected, workspace=None, scaling=1.0, dropout=0.0, seed=0, **RUN
        )
        check(projected, lambda wide, x=x, a=lora_A: x.to(wide) @ a.to(wide).T, "S")
        lora_B = lora_A.T.contiguous()
        kernels.lora_expand(projected=projected, lora_B=lora_B, bias=None, y=x, accumulate=False, **RUN)
        check(x, lambda wide, s=projected, b=lora_B: s.to(wide) @ b.to(wide).T, "y")


def test_plan_depends_on_the_shape_and_fills_the_gpu(emulated):
    def plan(*shape: int) -> dict[str, int]:
        return emulated.plan_lora(**dict(zip(("num_tokens", "num_columns", "rank"), shape, strict=True)))

    assert plan(2048, 4096, 16) == {"project_parts": 9, "row_parts": 16, "column_parts": 17}
    assert plan(2048, 14336, 64) == {"project_parts": 9, "row_parts": 112, "column_parts": 3}
    assert plan(1, 4096, 16) == {"project_parts": 32, "row_parts": 16, "column_parts": 1}
    assert plan(0, 0, 0) == {"project_parts": 1, "row_parts": 1, "column_parts": 1}


def test_errors_name_what_is_wrong(emulated):
    x, lora_A, projected = torch.zeros(5, 24), torch.zeros(4, 24), torch.zeros(5, 4)
    common = {"projected": projected, "workspace": None, "scaling": 1.0, "dropout": 0.0, "seed": 0} | RUN

    def call(**changed) -> None:
        emulated.lora_project(**({"x": x, "lora_A": lora_A} | common | changed))

    with pytest.raises(ValueError, match=r"lora_project: lora_A.shape\[1\] is 23, x expects 24"):
        call(lora_A=lora_A[:, :23].contiguous())
    with pytest.raises(ValueError, match=r"lora_project: projected.shape\[1\] is 5, x and lora_A give 4"):
        call(projected=torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"workspace has shape \[0, 5, 4\], expected parts"):
        call(workspace=torch.zeros(0, 5, 4))
    with pytest.raises(ValueError, match=r"lora_A.dtype is bfloat16, expected float32"):
        call(lora_A=lora_A.bfloat16())
    grad = {
        "lora_B": torch.zeros(600, 4),
        "projected": projected,
        "scaling": 1.0,
        "column_workspace": None,
    } | RUN
    with pytest.raises(ValueError, match="lora_grad: row_workspace has 1 parts, the plan says 3"):
        emulated.lora_grad(
            grad_y=torch.zeros(5, 600), grad_projected=torch.zeros(5, 4), grad_B=torch.zeros(600, 4),
            row_workspace=None, **grad,
        )  # fmt: skip
    with pytest.raises(ValueError, match="grad_projected is None and so is grad_B, one of them is needed"):
        emulated.lora_grad(
            grad_y=torch.zeros(5, 600), grad_projected=None, grad_B=None, row_workspace=None, **grad
        )
