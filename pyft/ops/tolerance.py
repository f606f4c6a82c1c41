"""The rule by which a result is compared with one in float64, for tests and benches."""

from __future__ import annotations

import torch
from torch import Tensor


def _find_non_finite(ours: Tensor, reference: Tensor, torchs: Tensor) -> str | None:
    """Say where `ours` is NaN or infinite and the reference is not the same, or the other way round."""
    special = (ours == reference) | (ours.isnan() & reference.isnan())
    wrong = ~torch.where(reference.isfinite(), ours.isfinite(), special)
    if wrong.any():
        index = tuple(torch.nonzero(wrong)[0].tolist())
        values = f"{ours[index]} where the reference has {reference[index]}"
        return f"{int(wrong.sum())} values differ in being finite, first at {index}: {values}"
    if not torchs[reference.isfinite()].isfinite().all():
        return "torch's own result is not finite where the reference is"
    return None


def find_mismatch(actual: Tensor, reference64: Tensor, same_dtype_torch: Tensor) -> str | None:
    """Judge a result: its error may be twice that of torch in the same dtype, plus one unit of rounding.

        max|actual - ref|  <=  2 max|torch - ref| + eps(dtype) max|ref|,   and the same for the means

    The mean catches what a single large error of torch's own would excuse. NaN and infinities must be where
    the reference has them.

    Args:
        actual: the result to judge.
        reference64: the same in float64.
        same_dtype_torch: the same computed by torch in the dtype of `actual`.

    Returns:
        None when the result is good, otherwise one line that says why not.
    """
    if reference64.dtype != torch.float64:
        return f"the reference is {reference64.dtype}, not float64"
    for other, what in ((reference64, "the reference"), (same_dtype_torch, "torch")):
        if actual.shape != other.shape:
            return f"shape is {tuple(actual.shape)}, {what} has {tuple(other.shape)}"
    if actual.dtype != same_dtype_torch.dtype:
        return f"dtype is {actual.dtype}, torch has {same_dtype_torch.dtype}"
    ours, reference, torchs = (t.detach().double().cpu() for t in (actual, reference64, same_dtype_torch))
    non_finite = _find_non_finite(ours, reference, torchs)
    if non_finite is not None:
        return non_finite
    finite = reference.isfinite()
    if not finite.any():
        return None
    ours, reference, torchs = ours[finite], reference[finite], torchs[finite]
    for name, measure in (("max", torch.max), ("mean", torch.mean)):
        error, expected = measure((ours - reference).abs()), measure((torchs - reference).abs())
        magnitude = measure(reference.abs())
        bound = 2 * expected + torch.finfo(actual.dtype).eps * magnitude
        if not error <= bound:
            whose = f"torch in {actual.dtype}: {expected:.3e}, {name} magnitude {magnitude:.3e}"
            return f"{name} error {error:.3e} is above {bound:.3e} ({whose})"
    return None
