"""A frozen linear layer with a low-rank addition on a GPU: kernels for the addition, around the base product.

    forward     S = scaling * drop(x) A^T           reads x
                y = S B^T + bias                    written once,
                y += x W^T                          then the base product accumulates onto it

    backward    S                                   once more, where dB is wanted: reads 2 T K bytes of x
                dS = scaling * dY B, dB = dY^T S    one pass over dY
                dA = dS^T drop(x)                   reads x
                dX = drop'(dS A), dX += dY W

The base product is torch's on a dense weight and panel by panel on an NF4 one (`nf4_dequantized`). With few
tokens NF4 has a kernel that writes its result (`nf4_few_tokens`) and takes the addition along; where that is
not for the rank, or dX has entries dropped, it is added afterwards. Dropout's mask is computed from
its seed wherever it is needed. Each sum is cut into parts by the shape alone (`C.plan_lora`), which go to a
workspace and are added in order: always the same bits. Where the addition has kernels of its own, A and B
count with all their 24 bits (csrc/cuda/device/split_float.h).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyft.ops.arguments import lora_base, matrix
from pyft.ops.cuda.nf4_dequantized import backward_dequantized, linear_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, fits_few_tokens, linear_few_tokens
from pyft.ops.native import C, Execution, execution

if TYPE_CHECKING:
    from pyft.ops.lora import Arguments, BackwardArguments


def linear_on_cuda(arguments: Arguments) -> Tensor:
    """y; what `pyft.ops.lora` registers for CUDA."""
    layer = _Layer.of(arguments)
    x, weight, lora_A, lora_B = layer.x, layer.weight, layer.lora_A, layer.lora_B
    bias = None if arguments.bias is None else arguments.bias.contiguous()
    C.check_lora_linear(
        x=x, weight=weight, bias=bias, lora_A=lora_A, lora_B=lora_B, dropout=layer.drop["dropout"]
    )
    projected = layer.project()
    y = arguments.x.new_empty((*arguments.x.shape[:-1], lora_B.shape[0]))
    out = matrix(y)
    if fits_few_tokens(x, weight, is_backward=False):
        if _is_taken_along(projected, lora_B):
            linear_few_tokens(x, weight, out, bias=bias, projected=projected, lora_B=lora_B)
        else:
            linear_few_tokens(x, weight, out, bias=bias)
            layer.expand(projected, None, out, accumulate=True)
        return y
    layer.expand(projected, bias, out, accumulate=False)
    if isinstance(weight, Tensor):
        out.addmm_(x, weight.T)
    else:
        linear_dequantized(x, weight, out, accumulate=True)
    return y


def linear_backward_on_cuda(arguments: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, A and B; those that are not wanted have no elements."""
    layer, grad_y = _Layer.of(arguments), matrix(arguments.grad_y)
    wants_x, wants_A, wants_B = arguments.wanted
    projected = layer.project() if wants_B else None
    grad_projected = layer.narrow() if wants_x or wants_A else None
    grad_B = layer.differentiate_B(grad_y, projected, grad_projected)
    grad_x = layer.differentiate_x(grad_y, grad_projected) if wants_x else layer.x.new_empty(0)
    grad_A = layer.differentiate_A(grad_projected) if wants_A else layer.lora_A.new_empty(0)
    if grad_B is None:
        grad_B = layer.lora_B.new_empty(0)
    return grad_x.view(arguments.x.shape) if wants_x else grad_x, grad_A, grad_B


class _Layer(NamedTuple):
    """One call's inputs, contiguous, and the kernels for what is low-rank in it.

    Attributes:
        x: [T, K].
        weight: dense, in x's dtype, or the parts of an NF4 one.
        lora_A: [R, K].
        lora_B: [N, R].
        scaling: of S and dS.
        drop: dropout's probability and seed.
        where: the thread count and stream of the call.
    """

    x: Tensor
    weight: Tensor | tuple
    lora_A: Tensor
    lora_B: Tensor
    scaling: float
    drop: dict[str, float | int]
    where: Execution

    @classmethod
    def of(cls, arguments: Arguments | BackwardArguments) -> _Layer:
        weight = lora_base(arguments.weight, arguments.shape)
        return cls(
            matrix(arguments.x),
            weight.to(arguments.x.dtype) if isinstance(weight, Tensor) else weight,
            arguments.lora_A.contiguous(),
            arguments.lora_B.contiguous(),
            arguments.scaling,
            {"dropout": arguments.dropout, "seed": arguments.seed},
            execution(arguments.x),
        )

    def narrow(self) -> Tensor:
        """Memory for S or dS, float32 [T, R]."""
        return self.x.new_empty((self.x.shape[0], self.lora_A.shape[0]), dtype=torch.float32)

    def plan(self, wide: Tensor) -> dict[str, int]:
        return _plan(C, *wide.shape, self.lora_A.shape[0])

    def project(self) -> Tensor:
        """S."""
        projected = self.narrow()
        C.lora_project(
            x=self.x,
            lora_A=self.lora_A,
            projected=projected,
            workspace=_workspace(self.plan(self.x)["project_parts"], projected),
            scaling=self.scaling,
            **self.drop,
            **self.where,
        )
        return projected

    def expand(self, projected: Tensor, bias: Tensor | None, y: Tensor, *, accumulate: bool) -> None:
        """y = [y +] S B^T + bias."""
        C.lora_expand(
            projected=projected, lora_B=self.lora_B, bias=bias, y=y, accumulate=accumulate, **self.where
        )

    def differentiate_B(
        self, grad_y: Tensor, projected: Tensor | None, grad_projected: Tensor | None
    ) -> Tensor | None:
        """Fill dS where there is a tensor for it; dB where S is given."""
        plan = self.plan(grad_y)
        grad_B = None if projected is None else torch.empty_like(self.lora_B)
        row_parts = plan["project_parts" if grad_B is None else "row_parts"]
        C.lora_grad(
            grad_y=grad_y,
            lora_B=self.lora_B,
            projected=projected,
            grad_projected=grad_projected,
            grad_B=grad_B,
            row_workspace=_workspace(row_parts, grad_projected),
            column_workspace=_workspace(plan["column_parts"], grad_B),
            scaling=self.scaling,
            **self.where,
        )
        return grad_B

    def differentiate_A(self, grad_projected: Tensor) -> Tensor:
        grad_A = torch.empty_like(self.lora_A)
        C.lora_grad_A(
            x=self.x,
            grad_projected=grad_projected,
            grad_A=grad_A,
            workspace=_workspace(self.plan(self.x)["column_parts"], grad_A),
            **self.drop,
            **self.where,
        )
        return grad_A

    def differentiate_x(self, grad_y: Tensor, grad_projected: Tensor) -> Tensor:
        weight, lora_A = self.weight, self.lora_A
        grad_x = torch.empty_like(self.x)
        if fits_few_tokens(grad_y, weight, is_backward=True):
            if self.drop["dropout"] == 0.0 and _is_taken_along(grad_projected, lora_A):
                backward_few_tokens(grad_y, weight, grad_x, grad_projected=grad_projected, lora_A=lora_A)
            else:
                backward_few_tokens(grad_y, weight, grad_x)
                self.expand_backward(grad_projected, grad_x, accumulate=True)
            return grad_x
        self.expand_backward(grad_projected, grad_x, accumulate=False)
        if isinstance(weight, Tensor):
            grad_x.addmm_(grad_y, weight)
        else:
            backward_dequantized(grad_y, weight, grad_x, accumulate=True)
        return grad_x

    def expand_backward(self, grad_projected: Tensor, grad_x: Tensor, *, accumulate: bool) -> None:
        """dX = [dX +] drop'(dS A)."""
        C.lora_expand_backward(
            grad_projected=grad_projected,
            lora_A=self.lora_A,
            grad_x=grad_x,
            accumulate=accumulate,
            **self.drop,
            **self.where,
        )


@functools.lru_cache(4096)
def _plan(module: ModuleType, num_tokens: int, num_columns: int, rank: int) -> dict[str, int]:
    return module.plan_lora(num_tokens=num_tokens, num_columns=num_columns, rank=rank)


def _is_taken_along(narrow: Tensor, factor: Tensor) -> bool:
    """Whether the kernel for few tokens takes the addition too: S and B, or dS and A."""
    rank = narrow.shape[1]
    return rank % 4 == 0 and rank <= 64 and narrow.data_ptr() % 16 == 0 and factor.data_ptr() % 16 == 0


def _workspace(num_parts: int, result: Tensor | None) -> Tensor | None:
    """Memory for the parts of a sum, None where it has one part or is not wanted."""
    if num_parts == 1 or result is None:
        return None
    return result.new_empty((num_parts, *result.shape))
