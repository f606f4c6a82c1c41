"""A model's RMSNorms, SwiGLU MLPs and rotary embeddings, computed by pyft's operations.

    XRMSNorm               -> FusedRMSNorm    the same weight under the same name
    XMLP with SiLU         -> FusedMLP        the same layers under the same names
    XAttention.forward     -> itself, with `rotary` for the function that rotates queries and keys

What a module computes is found by asking it, not by a list of architectures: a copy of it with small random
weights runs on random numbers, and it is replaced only where the operation gives the same ones. Everything
happens on the model at hand; transformers' classes and modules stay as they are, and what is not recognised
stays transformers' own (`describe_fused` names it).

The function that rotates is not a method but a name in its module, so an attention layer gets its own forward
with our meaning of that name (`_with_global`). A forward that is wrapped in anything but transformers'
renaming of deprecated keywords is left alone.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyft.model.layers.replace import replace_module
from pyft.ops.rms_norm import rms_norm
from pyft.ops.rotary import rotary
from pyft.ops.swiglu import swiglu

_DTYPES = (torch.float32, torch.bfloat16)
_MLP_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_ROTATE = "apply_rotary_pos_emb"


class FusedRMSNorm(nn.Module):
    """Rows over their root mean square, times weight_offset + weight.

    Args:
        weight: [K], the parameter of the module it replaces.
        eps: added to the mean square.
        weight_offset: 0.0, or 1.0 where the architecture stores the weight less 1.
    """

    def __init__(self, weight: nn.Parameter, *, eps: float, weight_offset: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps, self.weight_offset = eps, weight_offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., K]."""
        return rms_norm(x, self.weight, eps=self.eps, weight_offset=self.weight_offset)

    def extra_repr(self) -> str:
        """Say width and constants."""
        return f"{self.weight.shape[0]}, eps={self.eps}, weight_offset={self.weight_offset}"


class FusedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Args:
        mlp: the module it replaces, whose layers it takes over.
        names: of the layers gate, up and down.
    """

    def __init__(self, mlp: nn.Module, names: tuple[str, str, str]) -> None:
        super().__init__()
        for name, layer in mlp.named_children():
            self.add_module(name, layer)
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        """Run the three layers on x [..., K]."""
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(swiglu(gate(x), up(x)))


@torch.no_grad()
def fuse_activations(model: PreTrainedModel) -> None:
    """Replace what is recognised, in place; harmless when repeated.

    A model in another dtype than float32 or bfloat16 is left as it is.
    """
    if model.dtype not in _DTYPES:
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the CPU alone
        offsets: dict[tuple[type, float], float | None] = {}
        functions: dict[Callable, Callable | None] = {}
        for name, module in list(model.named_modules()):
            if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
                continue
            if _looks_like_norm(module) and module.weight.dtype == model.dtype:
                key = (type(module), _eps(module))
                if key not in offsets:
                    offsets[key] = _norm_offset(module)
                if (offset := offsets[key]) is not None:
                    norm = FusedRMSNorm(module.weight, eps=key[1], weight_offset=offset)
                    replace_module(model, name, norm.train(module.training))
            elif (names := _mlp_names(module)) and _is_swiglu(module, names):
                replace_module(model, name, FusedMLP(module, names).train(module.training))
            elif (forward := _rotating_forward(module)) is not None:
                function = forward.__globals__[_ROTATE]
                if function not in functions:
                    functions[function] = _fused_rotary(function)
                if (ours := functions[function]) is not None:
                    module.forward = types.MethodType(_with_global(forward, _ROTATE, ours), module)


def describe_fused(model: nn.Module) -> str:
    """Say what pyft computes, and which modules of the same kind it left to transformers.

    As in "fused: 49 norms, 24 MLPs, 24 rotary embeddings; by transformers: 2 GlmAttention".
    """
    done, left = Counter[str](), Counter[str]()
    for module in model.modules():
        if isinstance(module, FusedRMSNorm):
            done["norms"] += 1
        elif isinstance(module, FusedMLP):
            done["MLPs"] += 1
        elif "forward" in vars(module) and _ROTATE in module.forward.__func__.__code__.co_names:
            done["rotary embeddings"] += 1
        elif _looks_like_norm(module) or _mlp_names(module) or _rotating_forward(module) is not None:
            left[type(module).__name__] += 1
    text = "fused: " + (", ".join(f"{count} {kind}" for kind, count in done.items()) or "nothing")
    if left:
        text += "; by transformers: " + ", ".join(f"{count} {kind}" for kind, count in left.items())
    return text


# ---- norms -----------------------------------------------------------------------------------------------


def _eps(module: nn.Module) -> float | None:
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    return next((eps for eps in found if isinstance(eps, float)), None)


def _looks_like_norm(module: nn.Module) -> bool:
    """Say whether this is an RMSNorm by its name and its parts: one vector, a small number, one input."""
    return (
        "RMSNorm" in type(module).__name__
        and not isinstance(module, FusedRMSNorm)
        and list(module._parameters) == ["weight"]
        and module.weight is not None
        and module.weight.dim() == 1
        and not module._buffers
        and not module._modules
        and _eps(module) is not None
        and _num_inputs(type(module).forward) == 1
    )


def _norm_offset(module: nn.Module) -> float | None:
    """Find what the norm adds to its weight; None when it computes something else."""
    width, eps = 24, _eps(module)
    probe = copy.copy(module)
    probe.__dict__["_parameters"] = {"weight": nn.Parameter(torch.randn(width))}
    # A mean that is not 0 tells it from LayerNorm, a row of tiny numbers shows eps.
    x = torch.randn(3, width) + 0.5
    x[1] *= eps**0.5
    theirs = _result(probe, x)
    for offset in (0.0, 1.0):
        if _is_same(theirs, rms_norm(x, probe.weight, eps=eps, weight_offset=offset)):
            return offset
    return None


# ---- MLPs ------------------------------------------------------------------------------------------------


def _mlp_names(module: nn.Module) -> tuple[str, str, str] | None:
    """Names of gate, up and down, where the module has these layers and at most an activation beside them."""
    if isinstance(module, FusedMLP) or module._parameters or module._buffers:
        return None
    for names in _MLP_NAMES:
        rest = set(module._modules) - set(names)
        if set(names) <= set(module._modules) and len(rest) <= 1 and _num_inputs(type(module).forward) == 1:
            return names
    return None


def _is_swiglu(module: nn.Module, names: tuple[str, str, str]) -> bool:
    activations = [child for name, child in module.named_children() if name not in names]
    if any("SiLU" not in type(child).__name__ for child in activations):
        return False
    gate, up, down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
    probe = copy.copy(module)
    probe.__dict__["_modules"] = {**module._modules, **dict(zip(names, (gate, up, down), strict=True))}
    x = torch.randn(1, 5, 8) * 3
    return _is_same(_result(probe, x), down(swiglu(gate(x), up(x))))


# ---- rotary embeddings -----------------------------------------------------------------------------------


def _rotating_forward(module: nn.Module) -> types.FunctionType | None:
    """Find the forward under transformers' wrappers for old keywords, if it rotates queries and keys."""
    forward = type(module).forward
    while hasattr(forward, "__wrapped__"):
        if forward.__globals__.get("__name__") != "transformers.utils.deprecation":
            return None
        forward = forward.__wrapped__
    if not isinstance(forward, types.FunctionType) or _ROTATE not in forward.__code__.co_names:
        return None
    return forward if isinstance(forward.__globals__.get(_ROTATE), types.FunctionType) else None


def _fused_rotary(function: types.FunctionType) -> Callable | None:
    """Ours in place of the architecture's function; None when that one does something else."""
    names = list(inspect.signature(function).parameters)
    if names not in (["q", "k", "cos", "sin"], ["q", "k", "cos", "sin", "unsqueeze_dim"]):
        return None
    q, k, angle = torch.randn(2, 3, 5, 16), torch.randn(2, 1, 5, 16), torch.randn(2, 5, 16)
    theirs = function(q, k, angle.cos(), angle.sin())
    if not _is_same(theirs, rotary(q, k, angle.cos(), angle.sin())):
        return None
    try:  # only some take tables for a part of the head
        theirs = function(q, k, angle[..., :8].cos(), angle[..., :8].sin())
    except RuntimeError:
        pass
    else:
        if not _is_same(theirs, rotary(q, k, angle[..., :8].cos(), angle[..., :8].sin())):
            return None

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1):  # type: ignore[no-untyped-def]
        # Heads before tokens, one dtype: anything else is the architecture's own affair.
        if unsqueeze_dim == 1 and cos.dim() == 3 and q.dtype == k.dtype == cos.dtype == sin.dtype:
            return rotary(q, k, cos, sin)
        return function(q, k, cos, sin, **({} if unsqueeze_dim == 1 else {"unsqueeze_dim": unsqueeze_dim}))

    return rotate


def _with_global(function: types.FunctionType, name: str, value: object) -> types.FunctionType:
    """Make the function again from its code, with another meaning for one name of its module.

    The architectures' attention looks `apply_rotary_pos_emb` up in its module at each call, and transformers
    has no switch for it (`use_kernelized_func` takes kernels from its hub alone). Setting the name in the
    module would change every model in the process; this changes the one layer it is bound to.
    """
    changed = types.FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


# ---- asking ----------------------------------------------------------------------------------------------


def _num_inputs(forward: Callable) -> int:
    return len(inspect.signature(forward).parameters) - 1  # without self


def _result(probe: nn.Module, x: Tensor) -> Tensor | None:
    """Run the module on x without hooks; None when it cannot."""
    try:
        return type(probe).forward(probe, x)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None


def _is_same(theirs: object, ours: Tensor | tuple[Tensor, ...]) -> bool:
    theirs, ours = (x if isinstance(x, tuple) else (x,) for x in (theirs, ours))
    return len(theirs) == len(ours) and all(
        isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(theirs, ours, strict=True)
    )
