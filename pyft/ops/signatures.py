"""The arguments of the operations that CPU and CUDA compute in different ways, named once for both.

`Operation` (pyft/ops/operation.py) makes schema, fake and autograd from these tuples. Shapes: T tokens,
K in-features, N out-features, R rank, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LoraArguments(NamedTuple):
    x: Tensor  # [..., K]
    weight: list[Tensor | None]  # the dense weight alone, or NF4Weight.parts
    shape: list[int]  # N, K
    lora_A: Tensor  # float32 [R, K]
    lora_B: Tensor  # float32 [N, R]
    bias: Tensor | None  # [N]
    scaling: float
    dropout: float
    seed: int


class LoraBackwardArguments(NamedTuple):
    grad_y: Tensor  # [..., N]
    x: Tensor
    weight: list[Tensor | None]
    shape: list[int]
    lora_A: Tensor
    lora_B: Tensor
    scaling: float
    dropout: float
    seed: int
    wanted: list[bool]  # the gradients of x, A and B


class NF4LinearArguments(NamedTuple):
    x: Tensor  # [..., K]
    weight: list[Tensor | None]  # NF4Weight.parts
    shape: list[int]  # N, K
    bias: Tensor | None  # [N]


class NF4LinearBackwardArguments(NamedTuple):
    grad_y: Tensor  # [..., N]
    weight: list[Tensor | None]
    shape: list[int]


class LinearCrossEntropyArguments(NamedTuple):
    hidden: Tensor  # [T, K]
    head_weight: Tensor  # [V, K]
    bias: Tensor | None  # [V]
    targets: Tensor  # int64 [T]
    ignore_index: int
    terms: list[float]  # logit_scale, logit_softcap or 0, label_smoothing, z_loss
    wanted: list[bool]  # the gradients of hidden, head_weight and bias
    num_targets: int | None  # on the CPU not looked at
