"""Products with an NF4 weight of any size: panel by panel, dequantised and multiplied by torch.

    y[:, n0:n1]  += x W[n0:n1, :]^T       panels of rows: each part of y is written once
    dX[:, k0:k1] += dY W[:, k0:k1]        panels of columns: each part of dX is written once

A panel has at most 16 MiB, so that it stays in the L2 cache between the kernel that fills it and the product
that reads it, and nothing is accumulated in bfloat16 across panels. Two panels are in flight:

    side stream               fill 1      fill 2      fill 3     after the product that read its buffer
    current stream    fill 0  product 0   product 1   product 2   product 3

The side stream and the allocator: both buffers are allocated on the current stream, and the side stream
begins by waiting for it, so what had the memory before is done. Every fill is waited for by the product that
reads it, on the current stream, so when the last product is queued nothing on the side stream is left that
the current stream will not have waited for: memory that is freed afterwards, the buffers and the caller's
weight alike, is handed out again in the right order, and no record_stream is needed. For the same reason a
capture in a CUDA graph forks and joins as it must.

A weight that is one panel is filled and multiplied on the current stream. Weights whose K is no multiple of
64 have no panels of columns and are one panel in the backward, whatever their size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyft.ops.native import C, num_threads

PANEL_BYTES = 16 << 20
_STEP = 64  # rows or columns: panels begin where a block of 64 weights does


def linear_dequantized(
    x: Tensor, weight: tuple, y: Tensor, *, accumulate: bool, bias: Tensor | None = None
) -> None:
    """Write y [T, N], whose rows are contiguous, = [y +] x [T, K] W^T + bias, all in x's dtype."""
    num_rows, num_columns = weight[5]
    if accumulate and bias is not None:
        y.add_(bias)
        bias = None
    panel_rows = _panel_size(num_columns * x.element_size(), num_rows)

    def multiply(panel: Tensor, first: int) -> None:
        last = first + panel.shape[0]
        part = None if bias is None else bias[first:last]
        _multiply(x, panel.T, y[:, first:last], accumulate, part)

    _for_each_panel(x, weight, 0, panel_rows, multiply)


def backward_dequantized(grad_y: Tensor, weight: tuple, grad_x: Tensor, *, accumulate: bool) -> None:
    """Write dX [T, K], whose rows are contiguous, = [dX +] dY [T, N] W, all in dY's dtype."""
    num_rows, num_columns = weight[5]
    panel_columns = num_columns
    if num_columns % _STEP == 0:
        panel_columns = _panel_size(num_rows * grad_y.element_size(), num_columns)

    def multiply(panel: Tensor, first: int) -> None:
        _multiply(grad_y, panel, grad_x[:, first : first + panel.shape[1]], accumulate, None)

    _for_each_panel(grad_y, weight, 1, panel_columns, multiply)


def _panel_size(line_bytes: int, num_lines: int) -> int:
    """How many rows, or columns, of `line_bytes` a panel has: all, or a multiple of 64."""
    if line_bytes * num_lines <= PANEL_BYTES:
        return num_lines
    return min(max(PANEL_BYTES // line_bytes // _STEP, 1) * _STEP, num_lines)


def _multiply(a: Tensor, b: Tensor, out: Tensor, accumulate: bool, bias: Tensor | None) -> None:
    if accumulate:
        out.addmm_(a, b)
    elif bias is not None:
        torch.addmm(bias, a, b, out=out)
    else:
        torch.mm(a, b, out=out)


def _for_each_panel(
    beside: Tensor, weight: tuple, dim: int, size: int, multiply: Callable[[Tensor, int], None]
) -> None:
    """Dequantise the weight to the dtype of `beside`, `size` rows (dim 0) or columns (1) at a time."""
    length, other = weight[5][dim], weight[5][1 - dim]
    if beside.shape[0] == 0 or length == 0:
        return
    firsts = range(0, length, size)
    buffers = [beside.new_empty(size * other) for _ in firsts[:2]]

    def panel_of(index: int) -> Tensor:
        count = min(size, length - firsts[index])
        shape = (count, other) if dim == 0 else (other, count)
        return buffers[index % 2][: count * other].view(shape)

    def fill(index: int, stream: int) -> None:
        where = {("first_row", "first_column")[dim]: firsts[index]}
        C.nf4_dequantize(
            weight=weight, out=panel_of(index), **where, num_threads=num_threads(), stream=stream
        )

    current = side = _InOrder()
    if beside.is_cuda:
        current = torch.cuda.current_stream(beside.device)
        side = _side_stream(beside.device) if len(firsts) > 1 else current
    pipeline(len(firsts), fill, lambda index: multiply(panel_of(index), firsts[index]), current, side)


def pipeline(
    num_panels: int,
    fill: Callable[[int, int], None],
    multiply: Callable[[int], None],
    current: Any,
    side: Any,
) -> None:
    """Queue fills and products of panels, of which two are in flight.

    Args:
        num_panels: how many, at least one.
        fill: called with a panel and the raw stream it is to be filled on; uses buffer `panel % 2`.
        multiply: called with a panel; queues its product on the current stream.
        current: the current stream; all that was queued is behind it afterwards.
        side: the stream that fills.
    """
    fill(0, current.cuda_stream)
    for panel in range(num_panels):
        if panel + 1 == num_panels:
            return multiply(panel)
        # The product of panel - 1, the last to read the next one's buffer, is queued already.
        side.wait_event(current.record_event())
        fill(panel + 1, side.cuda_stream)
        filled = side.record_event()
        try:
            multiply(panel)
        finally:  # an error too frees the buffers, and the fill must come before whoever gets them
            current.wait_event(filled)


class _InOrder:
    """The CPU, where everything happens when it is said."""

    cuda_stream = 0

    def record_event(self) -> None:
        """Nothing is ever under way."""

    def wait_event(self, event: None) -> None:
        """Nothing is ever under way."""


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # A fill is short: ahead of the blocks of a product that is already running, it overlaps with its tail.
    return torch.cuda.Stream(device, priority=-1)
