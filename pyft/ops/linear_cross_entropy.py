"""Cross-entropy from hidden states: the logits are never all stored.

    l       = cap(logit_scale (hidden W^T + bias)),   cap(x) = logit_softcap tanh(x / logit_softcap)
    loss    = sum over rows with targets[t] != ignore_index, of l[t] as `cross_entropy` has it
    dX[t]   = dl[t] (1 - (l[t] / logit_softcap)^2) logit_scale,   dl as `cross_entropy` has it
    dHidden = dX W,   dW = dX^T hidden,   dBias = sum_t dX[t]

Sums are float32. How it is computed depends on the device: `linear_cross_entropy_on_cpu` has two ways in C++,
`pyft.ops.cuda.linear_cross_entropy` two made of kernels and torch's matrix products.

Shapes: T tokens, K hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.cuda.linear_cross_entropy import ON_CUDA
from pyft.ops.linear_cross_entropy_on_cpu import keep_gradients, plan_on_cpu, scale_gradients
from pyft.ops.native import runs_on_cuda


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_targets: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits of an output head, which are never all stored.

    Rows without a target are skipped, and nothing is computed for a gradient that is not wanted. On the CPU a
    head that trains keeps the logits of up to K rows until the backward, and never its gradient in float32.

    On CUDA nothing waits for the GPU, so rows can be skipped only if `num_targets` says how many there are.
    Without it every row costs as much as one with a target; the results are the same. A `num_targets` that is
    not the number of targets, and a target that is neither `ignore_index` nor in [0, V), are errors on the
    CPU (ValueError, IndexError); on CUDA they make loss and gradients NaN. Gradients of a head and of a bias
    are rounded to their dtype there before dLoss scales them.

    Args:
        hidden: float32 or bfloat16 [T, K].
        head_weight: hidden's dtype [V, K].
        targets: int64 [T].
        bias: hidden's dtype [V], or None.
        ignore_index: the value that marks a row without a target.
        logit_scale: factor of the logits (Cohere; Granite's logits_scaling is its inverse).
        logit_softcap: the bound that tanh bends the scaled logits to (Gemma 2); None for none.
        label_smoothing: torch's: this share of each target is spread evenly over all ids.
        z_loss: coefficient of a row's squared log-sum-exp, which keeps the softmax's normaliser near 1.
        num_targets: how many rows have a target; None if that is not known without looking.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in hidden, head_weight and bias.

    Raises:
        ValueError: for a shape, dtype or number that does not fit.
    """
    for name, tensor, expected in (("hidden", hidden, "[T, K]"), ("head_weight", head_weight, "[V, K]")):
        if tensor.dim() != 2:
            raise ValueError(
                f"linear_cross_entropy: {name} has shape {list(tensor.shape)}, expected {expected}"
            )
    if logit_softcap is not None and not logit_softcap > 0:  # 0 means none below
        raise ValueError(f"linear_cross_entropy: logit_softcap is {logit_softcap}, expected a number above 0")
    terms = [logit_scale, logit_softcap or 0.0, label_smoothing, z_loss]
    inputs = (hidden, head_weight, bias, targets, ignore_index, terms)
    wanted = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden, head_weight, bias)
    ]
    if num_targets is not None:
        _check_num_targets(num_targets, targets, ignore_index)
    if runs_on_cuda(hidden):
        return torch.ops.pyft.linear_cross_entropy_on_cuda(*inputs, wanted, num_targets)[0]
    plan = plan_on_cpu(hidden, head_weight, terms, any(wanted[1:]))
    if plan["by_two_passes"]:
        return torch.ops.pyft.linear_cross_entropy_forward(*inputs, plan["kept_rows"])[0]
    return torch.ops.pyft.linear_cross_entropy(*inputs, wanted)[0]


def _check_num_targets(num_targets: int, targets: Tensor, ignore_index: int) -> None:
    """Where that waits for nothing, that the number is right; everywhere, that it may be."""
    if not 0 <= num_targets <= targets.numel():
        raise ValueError(
            f"linear_cross_entropy: num_targets is {num_targets}, targets has {targets.numel()} elements"
        )
    if runs_on_cuda(targets):
        return
    counted = int((targets != ignore_index).sum())
    if num_targets != counted:
        raise ValueError(f"linear_cross_entropy: num_targets is {num_targets}, targets has {counted}")


# ---- registration with torch: CUDA; the CPU's operations register themselves ------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define(
    "linear_cross_entropy_on_cuda(Tensor hidden, Tensor head_weight, Tensor? bias, Tensor targets,"
    " int ignore_index, float[] terms, bool[] wanted, SymInt? num_targets)"
    " -> (Tensor loss, Tensor grad_hidden, Tensor grad_head, Tensor grad_bias)"
)


def _empty_gradients(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    terms: list[float],
    wanted: list[bool],
    num_targets: int | None,
) -> tuple[Tensor, ...]:
    tensors = zip((hidden, head_weight, bias), wanted, (torch.float32, *[hidden.dtype] * 2), strict=True)
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, *(hidden.new_empty(t.shape if wants else 0, dtype=dtype) for t, wants, dtype in tensors)


register_fake("pyft::linear_cross_entropy_on_cuda", _empty_gradients, lib=_library)
_library.impl("linear_cross_entropy_on_cuda", ON_CUDA["linear_cross_entropy_on_cuda"], "CUDA")
register_autograd(
    "pyft::linear_cross_entropy_on_cuda", scale_gradients, setup_context=keep_gradients, lib=_library
)
