"""The tolerance rule of every numeric test: at most twice the error of torch in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from pyft.ops.reference import find_mismatch


def assert_close_to_reference(
    actual: Tensor, reference64: Tensor, same_dtype_torch: Tensor, *, name: str = ""
) -> None:
    """Fail unless `actual` is as good as torch in the same dtype; see `pyft.ops.reference.find_mismatch`.

    Args:
        actual: the result under test.
        reference64: the same computed in float64.
        same_dtype_torch: the same computed by torch in the dtype of `actual`.
        name: what is compared, for the message.

    Raises:
        AssertionError: with the errors and the bound.
    """
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
