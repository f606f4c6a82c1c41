"""The parameters in training: their float32 weights and gradients, one step of the optimizer, its file.

    trainable float32 parameters     ->  the optimizer works on them as they are
    trainable bfloat16 parameters    ->  it works on float32 masters; p = round(master) after each step

Gradients of bfloat16 parameters are added into the master's float32 gradient as soon as a backward pass has
made them, so accumulation loses nothing and no bfloat16 gradient outlives its layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyft.errors import ConfigError
from pyft.trainer.optim import OPTIMIZERS
from pyft.trainer.settings import TrainSettings


class TrainedParameters:
    """A model's trainable parameters and the optimizer that changes them."""

    def __init__(self, model: nn.Module, settings: TrainSettings, optimizer: str = "adamw") -> None:
        """Set them up; from now on gradients of narrow parameters go to their masters."""
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter (adapter): nothing could be learned")
        self._masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                self._masters[name] = parameter.detach().float()
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(self._masters[name]))
        self._weights = {name: self._masters.get(name, p) for name, p in self._parameters.items()}
        self._optimizer = OPTIMIZERS[optimizer](self._weights, settings)

    @property
    def weight_bytes(self) -> int:
        """The size of the trained weights."""
        return sum(p.nbytes for p in self._parameters.values())

    @property
    def state_bytes(self) -> int:
        """About the size of what a checkpoint holds: the weights, the optimizer's state, and the masters."""
        masters = sum(master.nbytes for master in self._masters.values())
        return self.weight_bytes + self._optimizer.state_bytes + masters

    def gradients(self) -> list[Tensor]:
        """Return the gradients there are, float32, in the order of the parameters."""
        return [weight.grad for weight in self._weights.values() if weight.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm over all gradients, a scalar where they are."""
        return nn.utils.get_total_norm(self.gradients())

    def step(self, learning_rate: float, gradient_norm: Tensor, max_grad_norm: float | None) -> None:
        """Scale the gradients down to `max_grad_norm` (None: as they are), change the weights, drop them."""
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._weights.values(), max_grad_norm, gradient_norm)
        self._optimizer.step(learning_rate)
        self.drop_gradients()
        self._round_masters()

    def drop_gradients(self) -> None:
        """Forget the gradients, so that the next step begins with none."""
        for weight in self._weights.values():
            weight.grad = None

    def save(self, path: Path) -> None:
        """Write the optimizer's state, and the masters as `master/<parameter>`, in safetensors format."""
        tensors = {**self._optimizer.state(), **{f"master/{name}": m for name, m in self._masters.items()}}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, path, metadata={"pyft": self._label()})

    def load(self, path: Path) -> None:
        """Read what `save` wrote for this optimizer and these parameters, after the model's weights."""
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("pyft") != self._label():
                raise ConfigError(
                    f"is the state of another optimizer or of other parameters ({path}): it cannot be resumed"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
        for name, master in self._masters.items():
            master.copy_(tensors.pop(f"master/{name}"))
        self._optimizer.load(tensors)
        self._round_masters()

    def _label(self) -> str:
        # One entry, since safetensors writes several in an order that changes from process to process.
        return json.dumps({"optimizer": self._optimizer.name, "parameters": list(self._weights)})

    @torch.no_grad()
    def _round_masters(self) -> None:
        for name, master in self._masters.items():
            self._parameters[name].copy_(master)


def _move_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)

    return move
