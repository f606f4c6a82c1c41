"""What a right result is: random inputs from a fixed seed, and the tolerance rule of `pyft.ops.tolerance`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from timing import OURS
from torch import Tensor

from pyft.ops.tolerance import find_mismatch

Results = dict[str, Tensor]


def random(
    *shape: float,
    dtype: str = "float32",
    scale: float = 1.0,
    requires_grad: bool = False,
    device: str = "cpu",
) -> Tensor:
    """Draw normal random numbers, equal for equal sizes; zeros multiply faster on some hardware."""
    sizes = [int(size) for size in shape]
    generator = torch.Generator(device).manual_seed(hash(tuple(sizes)) & 0xFFFF)
    values = torch.randn(sizes, generator=generator, device=device) * scale
    return values.to(getattr(torch, dtype)).requires_grad_(requires_grad)


def masked_targets(num_rows: float, vocabulary: float, counted: float, device: str = "cpu") -> Tensor:
    """Draw int64 targets [num_rows], equal on every device; a share of `counted` is not -100."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(int(vocabulary), (int(num_rows),), generator=generator)
    dropped = torch.randperm(int(num_rows), generator=generator)[int(num_rows * counted) :]
    targets[dropped] = -100
    return targets.to(device)


def with_gradients(
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    grad_output: Tensor | tuple[Tensor, ...] | None = None,
) -> Results:
    """Run forward on the inputs, and backward to each that wants a gradient.

    Return `value`, or `value0` and so on, and `d<name>` for each gradient.
    """
    value = forward(*inputs.values())
    wanted = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(value, list(wanted.values()), grad_output)
    values = {f"value{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {"value": value}
    found = {f"d{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return {name: v.detach() for name, v in values.items()} | found


def same_as(compute: Callable[[torch.dtype], Results], dtype: str) -> Callable[[Results], str | None]:
    """Make a check by the tolerance rule; `compute` returns what plain torch computes in a dtype.

    On a GPU the error granted is that of plain torch in the case's dtype. On the CPU it is that of float32
    rounded to the result's dtype: stricter than torch in bfloat16 and, on processors without bfloat16
    arithmetic, hundreds of times faster.
    """
    cached = functools.cache(compute)

    def check(results: Results) -> str | None:
        expected = cached(torch.float64)
        if results.keys() != expected.keys():
            return f"results are {sorted(results)}, not {sorted(expected)}"
        for name, result in results.items():
            granted = getattr(torch, dtype) if result.is_cuda else torch.float32
            like_torch = cached(granted)[name].to(result.dtype)
            mismatch = find_mismatch(result, expected[name], like_torch)
            if mismatch:
                return f"{name}: {mismatch}"
        return None

    return check


def as_dtype(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same inputs as fresh leaves of another dtype."""
    return {name: t.detach().to(dtype).requires_grad_(t.requires_grad) for name, t in inputs.items()}


def ours_and_peers(
    exact: Callable,
    usual: Callable,
    inputs: dict[str, Tensor],
    grad_output: Tensor | tuple[Tensor, ...],
) -> Callable[[str, Results], str | None]:
    """Make a check for an operation whose usual computation rounds more often than pyft's.

    `exact` computes it in plain torch with as little rounding as the inputs' dtype allows, and ours is held
    to it; `usual` as models do: peers may have twice its error in that dtype.
    """
    dtype = next(iter(inputs.values())).dtype

    def compute(function: Callable, wide: torch.dtype) -> Results:
        alone = isinstance(grad_output, Tensor)
        weights = grad_output.to(wide) if alone else tuple(grad.to(wide) for grad in grad_output)
        return with_gradients(function, as_dtype(inputs, wide), weights)

    ours = same_as(functools.partial(compute, exact), str(dtype).removeprefix("torch."))

    @functools.cache
    def expected() -> tuple[Results, Results]:
        return compute(exact, torch.float64), compute(usual, dtype)

    def check(name: str, results: Results) -> str | None:
        if name == OURS:
            return ours(results)
        for key, result in results.items():
            if mismatch := find_mismatch(result, *(part[key] for part in expected())):
                return f"{key}: {mismatch}"
        return None

    return check
