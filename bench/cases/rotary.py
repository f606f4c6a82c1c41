"""rotary: queries and keys turned by their tokens' angles, forward + backward.

Both are transposed views, as attention makes them. The peers are what Llama computes in plain torch, which in
bfloat16 rounds after every step, and on a GPU Liger's function, which writes over what it is given and so is
given copies. They are held to twice the error of the former.

Shape: T tokens, heads, kv_heads, head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import expect
import peers
import shapes
import torch
from timing import OURS, Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rotary import rotary


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: see above.
        dtype: of everything.
        device: "cpu" or "cuda".

    Yields:
        Forward + backward.
    """
    tokens, size = int(shape["T"]), int(shape["head_dim"])

    def heads(row: int, key: str) -> Tensor:
        values = expect.random(row, tokens, shape[key], size, dtype=dtype, device=device)[:1]
        return values.transpose(1, 2)

    inputs = {"q": heads(1, "heads").requires_grad_(), "k": heads(1, "kv_heads").requires_grad_()}
    gradients = heads(2, "heads"), heads(2, "kv_heads")
    half = torch.arange(tokens)[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
    angle = torch.cat((half, half), dim=-1)[None].to(device)
    tables = angle.cos().to(getattr(torch, dtype)), angle.sin().to(getattr(torch, dtype))

    def with_tables(function: Callable) -> Callable:
        return lambda q, k: function(q, k, *(table.to(q.dtype) for table in tables))

    forwards = {OURS: rotary, "torch": _by_torch}
    if device == "cuda" and (liger := peers.liger()):
        forwards["liger on copies"] = lambda q, k, c, s: liger.liger_rope(q.clone(), k.clone(), c, s)
    entries = sum(tensor.numel() * tensor.element_size() for tensor in gradients)
    yield Case(
        op="rotary",
        label=f"fwd+bwd {dtype} {shapes.format_shape(shape)}",
        contenders={
            name: lambda f=forward: expect.with_gradients(with_tables(f), inputs, gradients)
            for name, forward in forwards.items()
        },
        check=expect.ours_and_peers(with_tables(reference.rotary), with_tables(_by_torch), inputs, gradients),
        work=4.0 * entries,
        unit="GB/s",
    )


def _by_torch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]

    def rotate(x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin

    return rotate(q), rotate(k)
