"""The tolerance rule of every numeric test: at most twice the error of torch in the same dtype.

Beside it the inputs that tests of a loss share, and its gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyft.ops.tolerance import find_mismatch


def assert_close_to_reference(
    actual: Tensor, reference64: Tensor, same_dtype_torch: Tensor, *, name: str = ""
) -> None:
    """Fail unless `actual` is as good as torch in the same dtype; see `pyft.ops.tolerance.find_mismatch`."""
    mismatch = find_mismatch(actual, reference64, same_dtype_torch)
    if mismatch is not None:
        raise AssertionError(f"{name or 'result'}: {mismatch}")


def poisoned_empty(monkeypatch) -> None:
    """Make torch.empty, empty_like and new_empty hand out NaN (255 for bytes), so unwritten output shows.

    Args:
        monkeypatch: pytest's fixture, which undoes it.
    """

    def poison(make):
        def poisoned(*args, **kwargs):
            result = make(*args, **kwargs)
            return result.fill_(
                float("nan") if result.is_floating_point() else 0xFF if result.dtype == torch.uint8 else -1
            )

        return poisoned

    for owner, function in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, function, poison(getattr(owner, function)))


def random(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal random numbers that require a gradient."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return values.to(dtype).requires_grad_()


def random_targets(num_rows: int, vocabulary: int, *, ignore_index: int = -100) -> Tensor:
    """About half the rows counted; the last and the first vocabulary id come first."""
    generator = torch.Generator().manual_seed(9)
    targets = torch.randint(vocabulary, (num_rows,), generator=generator)
    targets[torch.rand(num_rows, generator=generator) < 0.5] = ignore_index
    targets[:2] = torch.tensor([vocabulary - 1, 0])[:num_rows]
    return targets


def gradients(forward, *inputs: Tensor, scale: float = 0.37) -> list[Tensor]:
    """The value of `forward`, and the gradients of `scale` times it to the inputs that want one."""
    value = forward(*inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return [value.detach(), *torch.autograd.grad(value * scale, wanted)]


def assert_equals_reference(ours, theirs, *inputs: Tensor) -> None:
    """Compare value and gradients of `ours` with `theirs` in float64 and in the inputs' dtype."""

    def run(dtype: torch.dtype | None) -> list[Tensor]:
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in inputs]
        return gradients(theirs, *leaves)

    for i, results in enumerate(zip(gradients(ours, *inputs), run(torch.float64), run(None), strict=True)):
        assert_close_to_reference(*results, name="value" if i == 0 else f"gradient {i - 1}")


def output_gradients(forward, *inputs: Tensor) -> list[Tensor]:
    """The tensor or tensors that `forward` gives, and the gradients of a random weighing of their entries."""
    outputs = forward(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [random(*t.shape, seed=90 + i).detach().to(t) for i, t in enumerate(outputs)]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, wanted, weights)]


def assert_tensors_equal_reference(ours, theirs, *inputs: Tensor) -> None:
    """Compare outputs that are tensors, and gradients, with `theirs` in float64 and in the inputs' dtype."""

    def run(forward, dtype: torch.dtype | None = None) -> list[Tensor]:
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in inputs]
        return output_gradients(forward, *leaves)

    for i, results in enumerate(zip(run(ours), run(theirs, torch.float64), run(theirs), strict=True)):
        assert_close_to_reference(*results, name=f"output or gradient {i}")
