"""`pyft.ops.cuda.nf4_dequantized`: its products on emulated kernels, and what waits for what."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference
from torch import Tensor

from pyft.ops import reference
from pyft.ops.arguments import nf4_parts
from pyft.ops.cuda import nf4_dequantized

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(forward: bool, given: Tensor, weight: tuple, out: Tensor, **options) -> Tensor:
    product = nf4_dequantized.linear_dequantized if forward else nf4_dequantized.backward_dequantized
    product(given, weight, out, **options)
    return out


# Panels in bytes: one for all, several of unequal size, and fewer than the 64 rows or columns that are least.
@pytest.mark.parametrize("panel_bytes", [16 << 20, 192 * 128 * 2, 1])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forward", [True, False], ids=["forward", "backward"])
def test_products(emulated_ops, monkeypatch, forward, dtype, accumulate, panel_bytes):
    monkeypatch.setattr(nf4_dequantized, "PANEL_BYTES", panel_bytes)
    weight = reference.nf4_quantize(random(300, 192, seed=1, dtype=torch.float32))
    dense = reference.nf4_dequantize(weight, dtype)
    operand = dense.T if forward else dense
    given = random(19, operand.shape[0], seed=2, dtype=dtype)
    out = random(19, operand.shape[1], seed=3, dtype=dtype) if accumulate else None
    add = 0.0 if out is None else out.double()
    options: dict = {"accumulate": accumulate}
    if forward:
        options["bias"] = random(300, seed=4, dtype=dtype)
        add = add + options["bias"].double()
    exact = given.double() @ operand.double() + add
    torchs = (given @ operand) + (0.0 if out is None else out) + options.get("bias", 0.0)
    ours = torch.full_like(torchs, float("nan")) if out is None else out.clone()
    run(forward, given, nf4_parts(weight.parts, weight.shape), ours, **options)
    assert_close_to_reference(ours, exact, torchs)


@pytest.mark.parametrize("shape", [(7, 130), (64, 65), (1, 1), (0, 64), (5, 0)])
@pytest.mark.parametrize("forward", [True, False], ids=["forward", "backward"])
def test_sizes_that_have_no_panels_of_columns(emulated_ops, monkeypatch, shape, forward):
    monkeypatch.setattr(nf4_dequantized, "PANEL_BYTES", 1)
    weight = reference.nf4_quantize(random(*shape, seed=1, dtype=torch.float32))
    dense = reference.nf4_dequantize(weight)
    for tokens in (0, 3):
        given = random(tokens, shape[forward], seed=2, dtype=torch.float32)
        ours = torch.full((tokens, shape[1 - forward]), float("nan"))
        run(forward, given, nf4_parts(weight.parts, weight.shape), ours, accumulate=False)
        torch.testing.assert_close(ours, given @ (dense.T if forward else dense))


def test_nothing_but_the_rows_of_y_is_touched(emulated_ops, monkeypatch):
    """y may lie inside a wider matrix, as the parts of a joint projection do."""
    monkeypatch.setattr(nf4_dequantized, "PANEL_BYTES", 1)
    weight = reference.nf4_quantize(random(130, 64, seed=1, dtype=torch.float32))
    x, wide = random(5, 64, seed=2, dtype=torch.float32), torch.full((5, 200), 7.0)
    nf4_dequantized.linear_dequantized(
        x, nf4_parts(weight.parts, weight.shape), wide[:, 40:170], accumulate=False
    )
    torch.testing.assert_close(wide[:, 40:170], x @ reference.nf4_dequantize(weight).T)
    assert (wide[:, :40] == 7).all() and (wide[:, 170:] == 7).all()


class Stream:
    """A stream as a clock: how much of each stream's work is known to be done where this one stands."""

    def __init__(self, name: int) -> None:
        self.cuda_stream, self.done = name, {0: 0, 1: 0}

    def record_event(self) -> dict[int, int]:
        return dict(self.done)

    def wait_event(self, event: dict[int, int]) -> None:
        self.done = {name: max(count, event[name]) for name, count in self.done.items()}

    def queue(self) -> tuple[int, int]:
        """One more piece of work, named by stream and place."""
        self.done[self.cuda_stream] += 1
        return self.cuda_stream, self.done[self.cuda_stream]

    def is_behind(self, work: tuple[int, int]) -> bool:
        return self.done[work[0]] >= work[1]


@pytest.mark.parametrize("num_panels", [1, 2, 3, 7])
@pytest.mark.parametrize("fails_at", [None, 1])
def test_every_reader_and_writer_of_a_buffer_waits_for_the_other(num_panels, fails_at):
    current, side = streams = Stream(0), Stream(1)
    before = current.queue()  # whoever used the buffers' memory last, and wrote the weight
    fills, products = {}, {}

    def fill(panel: int, stream: int) -> None:
        assert streams[stream].is_behind(before)
        assert panel < 2 or streams[stream].is_behind(products[panel - 2])
        fills[panel] = streams[stream].queue()

    def multiply(panel: int) -> None:
        if panel == fails_at:
            raise RuntimeError("out of memory")
        assert current.is_behind(fills[panel])
        # Two in flight: the next is filled, or being filled, while this one multiplies.
        assert len(fills) == min(panel + 2, num_panels)
        assert panel + 1 == num_panels or not current.is_behind(fills[panel + 1])
        products[panel] = current.queue()

    try:
        nf4_dequantized.pipeline(num_panels, fill, multiply, current, side)
        assert len(products) == num_panels
    except RuntimeError:
        assert fails_at is not None
    assert all(current.is_behind(work) for work in [*fills.values(), *products.values()])
