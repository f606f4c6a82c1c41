"""AdamW over float32 weights, the learning-rate schedule, the gradient norm, and the optimizer's file.

    trainable float32 parameters     ->  AdamW works on them as they are
    trainable bfloat16 parameters    ->  AdamW works on float32 masters; p = round(master) after each step

Gradients of bfloat16 parameters are added into the master's float32 gradient as soon as a backward pass has
made them, so accumulation loses nothing and no bfloat16 gradient outlives its layer.

Left out: other optimizers, 8-bit and paged states.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyft.errors import ConfigError
from pyft.trainer.settings import TrainSettings

SCHEDULES = ("cosine", "linear", "constant")


def num_warmup_steps(warmup_steps: float, total_steps: int) -> int:
    """Count the warm-up steps.

    Args:
        warmup_steps: below 1 a share of all steps, rounded up; else their number.
        total_steps: optimizer steps of the run.

    Returns:
        The number of steps.
    """
    return math.ceil(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)


def learning_rate_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Give the learning rate of one optimizer step, a pure function (the schedules are transformers').

    With k = step - 1, w warm-up steps, n all steps and u = (k - w) / (n - w):
    k < w: base * k / w; after that cosine: base * (1 + cos(pi u)) / 2, linear: base * (1 - u), constant:
    base.

    Args:
        settings: base rate, schedule and warm-up.
        step: the step, from 1.
        total_steps: n.

    Returns:
        The rate.
    """
    done = step - 1
    warmup = num_warmup_steps(settings.warmup_steps, total_steps)
    if done < warmup:
        return settings.learning_rate * done / warmup
    progress = min((done - warmup) / max(1, total_steps - warmup), 1.0)
    if settings.lr_scheduler_type == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if settings.lr_scheduler_type == "linear":
        return settings.learning_rate * (1.0 - progress)
    return settings.learning_rate


class Optimizer:
    """AdamW over a model's trainable parameters, with float32 masters where they are narrower."""

    def __init__(self, model: nn.Module, settings: TrainSettings):
        """Set it up; from now on gradients of narrow parameters go to their masters.

        Args:
            model: its parameters that require a gradient are trained.
            settings: AdamW's numbers. Weight decay spares vectors (biases, norms), as transformers does.

        Raises:
            ConfigError: no parameter is trainable, or the schedule is unknown.
        """
        if settings.lr_scheduler_type not in SCHEDULES:
            raise ConfigError(
                f"unknown (train.lr_scheduler_type {settings.lr_scheduler_type!r}): one of {SCHEDULES}"
            )
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter (adapter): nothing could be learned")
        self._masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                self._masters[name] = parameter.detach().float()
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(self._masters[name]))
        self._weights = {name: self._masters.get(name, p) for name, p in self._parameters.items()}
        groups = [
            {
                "params": [w for w in self._weights.values() if w.ndim >= 2],
                "weight_decay": settings.weight_decay,
            },
            {"params": [w for w in self._weights.values() if w.ndim < 2], "weight_decay": 0.0},
        ]
        # fused: one kernel, the same on each machine of a kind, no temporary the size of all the weights.
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )

    @property
    def weight_bytes(self) -> int:
        """The size of the trained weights."""
        return sum(p.nbytes for p in self._parameters.values())

    @property
    def state_bytes(self) -> int:
        """About the size of what a checkpoint holds: the weights, both moments, and the masters."""
        moments = sum(8 * w.numel() for w in self._weights.values())
        return self.weight_bytes + moments + sum(m.nbytes for m in self._masters.values())

    def gradients(self) -> list[Tensor]:
        """Give the gradients there are, float32, in the order of the parameters."""
        return [weight.grad for weight in self._weights.values() if weight.grad is not None]

    def gradient_norm(self) -> float:
        """Give the 2-norm over all gradients, 0 when there is none."""
        gradients = self.gradients()
        return nn.utils.get_total_norm(gradients).item() if gradients else 0.0

    def step(self, learning_rate: float, gradient_norm: float, max_grad_norm: float | None) -> None:
        """Clips, updates the weights and drops the gradients.

        Args:
            learning_rate: this step's.
            gradient_norm: as `gradient_norm` gave it.
            max_grad_norm: gradients are scaled down to this norm; None leaves them.
        """
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._weights.values(), max_grad_norm, torch.tensor(gradient_norm))
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.drop_gradients()
        self._round_masters()

    def drop_gradients(self) -> None:
        """Forgets the gradients, so that the next step begins with none."""
        for weight in self._weights.values():
            weight.grad = None

    def save(self, path: Path) -> None:
        """Write moments, step counts and masters.

        Args:
            path: the file, in safetensors format: `<kind>/<parameter name>`, kind one of exp_avg, exp_avg_sq,
                step, master. Its metadata names the optimizer and the parameters in order.
        """
        tensors = {
            f"{kind}/{name}": tensor
            for name, weight in self._weights.items()
            for kind, tensor in self._adamw.state.get(weight, {}).items()
        }
        tensors.update({f"master/{name}": master for name, master in self._masters.items()})
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, path, metadata={"pyft": self._label()})

    def load(self, path: Path) -> None:
        """Read what `save` wrote; the model's weights must have been read before.

        Args:
            path: the file.

        Raises:
            ConfigError: it is of another optimizer, or of other parameters or another order of them.
        """
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("pyft") != self._label():
                raise ConfigError(
                    f"is the state of another optimizer or of other parameters ({path}): it cannot be resumed"
                )
            keys = set(file.keys())
            for name, weight in self._weights.items():
                state = {}
                for kind in ("step", "exp_avg", "exp_avg_sq"):
                    if f"{kind}/{name}" in keys:
                        state[kind] = file.get_tensor(f"{kind}/{name}").to(weight.device)
                if state:
                    self._adamw.state[weight] = state
                if name in self._masters:
                    self._masters[name].copy_(file.get_tensor(f"master/{name}"))
        self._round_masters()

    def _label(self) -> str:
        # One entry, since safetensors writes several in an order that changes from process to process.
        return json.dumps({"optimizer": "AdamW", "parameters": list(self._weights)})

    @torch.no_grad()
    def _round_masters(self) -> None:
        for name, master in self._masters.items():
            self._parameters[name].copy_(master)


def _move_gradient_to(master: Tensor):
    def move(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)

    return move
