"""LoRA: a frozen linear layer and its low-rank update.

    y = x W^T + b + scaling * drop(x) A^T B^T,   A [R, K], B [N, R],   scaling = lora_alpha / R

A and B are float32 whatever the dtype of x. Initial values are PEFT's: A uniform by Kaiming with a = sqrt(5),
B zero. Left out: rank-stabilised scaling, layers that differ in rank or scaling, biases that train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyft.model.layers.adapter_layer import AdapterLayer
from pyft.model.layers.frozen_linear import FrozenLinear
from pyft.ops.lora import lora_linear

# Settings of PEFT that change what LoRA computes, and the values at which they do not.
_NEUTRAL = dict.fromkeys(
    (
        "use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "exclude_modules", "target_parameters", "trainable_token_indices", "lora_bias",
    )
) | {"bias": "none", "fan_in_fan_out": False}  # fmt: skip


class LoRALinear(AdapterLayer):
    """A frozen linear layer and its low-rank update.

    Args:
        base: the frozen layer; weight [N, K].
        r: rank R.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability of dropping an input of the update, in training only.
    """

    def __init__(self, base: FrozenLinear, *, r: int, lora_alpha: float, lora_dropout: float) -> None:
        super().__init__(base)
        self.r, self.lora_alpha, self.lora_dropout = r, lora_alpha, lora_dropout
        self.scaling = lora_alpha / r
        device = next((parameter.device for parameter in base.parameters()), torch.device("cpu"))
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))

    @classmethod
    def options(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Take r, lora_alpha and lora_dropout; a setting that LoRA does not compute is a ValueError."""
        if settings.get("peft_type", "LORA") != "LORA" or not isinstance(settings.get("r"), int):
            raise ValueError(f"peft_type is {settings.get('peft_type')!r}: only LORA adapters are supported")
        for name, neutral in _NEUTRAL.items():
            if (value := settings.get(name)) and value != neutral:
                raise ValueError(f"{name} is {value!r}: not supported")
        defaults = {"lora_alpha": 8, "lora_dropout": 0.0}  # PEFT's
        return {name: settings.get(name, defaults.get(name)) for name in ("r", "lora_alpha", "lora_dropout")}

    def draw_(self, generator: torch.Generator) -> None:
        """Draw A; B stays zero."""
        start = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.lora_A.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., K]; return [..., N] in x's dtype."""
        return lora_linear(
            x,
            self.base.frozen_weight,
            self.lora_A,
            self.lora_B,
            scaling=self.scaling,
            dropout=self.lora_dropout if self.training else 0.0,
            bias=self.base.bias,
        )

    def merged_weight(self) -> Tensor:
        """Return W + scaling * B A, summed in float64."""
        dense = self.base.dense_weight()
        update = self.scaling * (self.lora_B.detach().double() @ self.lora_A.detach().double())
        return (dense.double() + update).to(dense.dtype)

    def peft_tensors(self) -> dict[str, nn.Parameter]:
        """Return A and B."""
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def peft_config(self, base_model: str | None, target_modules: Sequence[str]) -> dict[str, Any]:
        """Return the settings of a PEFT LoraConfig."""
        alpha = self.lora_alpha
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.r,
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": list(target_modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
            "use_dora": False,
            "use_rslora": False,
        }

    def extra_repr(self) -> str:
        """Say rank and scaling."""
        return f"r={self.r}, scaling={self.scaling}, dropout={self.lora_dropout}"
