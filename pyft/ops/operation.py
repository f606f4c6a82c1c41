"""An operation of torch, declared once: a tuple of named, typed arguments, from which all else follows.

    class Swiglu(NamedTuple):      schema      swiglu(Tensor gate, Tensor up) -> Tensor
        gate: Tensor               call        SWIGLU(Swiglu(gate, up)) -> y
        up: Tensor                 kernel      cpu(arguments) -> y, and cuda: they read arguments.gate, .up
                                   fake        empty(arguments) -> y, allocated and not computed
                                   autograd    gradients(kept, wanted, grad_y) -> {"gate": ..., "up": ...}

With gradients it is one node of the graph. Where it has a `handle`, of y's shape and no memory, and someone
watches what is kept, it is two:

    x ---> [keep] ---> handle ---> [run] ---> y            the second keeps nothing, and hands dY on

The reason is activation checkpointing: recomputing a block, torch stops once all that the block kept is there
again. A product that keeps nothing is not computed a second time when it ends its block, as an MLP's last one
does, which is a third of the work.

A backward with `create_graph` is an error, unless the gradients are made of operations that have gradients
(`twice`): to autograd they would be constants.

`torch.library.register_autograd` gives the same single node, but looks every argument's default up for each
call, among all arguments. Left out: operations that write to their arguments, gradients to lists of tensors,
of which an operation keeps one at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import Library, register_fake

OPERATIONS: dict[str, Operation] = {}
"""All that are declared, by name."""

_library = Library("pyft", "FRAGMENT")
# torch's own names, looked up here so that a torch without them says so before anything runs
_BelowAutograd, _after_autograd = torch._C._AutoDispatchBelowAutograd, torch._C._after_autograd_keyset
_watcher = torch._C._autograd._top_saved_tensors_default_hooks
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor | None]: "Tensor?[]",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    bool: "bool",
    list[int]: "SymInt[]",
    list[float]: "float[]",
    list[bool]: "bool[]",
    torch.dtype: "ScalarType",
}


class Operation:
    """`torch.ops.pyft.<name>`.

    Args:
        name: of the operation.
        arguments: a NamedTuple class, the arguments' names and types.
        empty: arguments -> the results, allocated; a Tensor, or a NamedTuple of them, as its annotation says.
        cpu: arguments -> the results.
        cuda: the same on a GPU.
        gradients: kept, names of the arguments to differentiate, gradients of the results -> gradients of
            arguments by name, of which those not asked for are dropped. Results that are kept have none.
        keeps: names of the tensors, arguments or results, that the gradients need; numbers are always kept.
        handle: arguments -> what has the result's shape and dtype, and no memory.
        twice: whether `gradients` can be differentiated in turn.
    """

    def __init__(
        self,
        name: str,
        arguments: type,
        empty: Callable[[Any], Any],
        *,
        cpu: Callable[[Any], Any] | None = None,
        cuda: Callable[[Any], Any] | None = None,
        gradients: Callable[..., Mapping[str, Tensor]] | None = None,
        keeps: tuple[str, ...] = (),
        handle: Callable[[Any], Tensor] | None = None,
        twice: bool = False,
    ) -> None:
        self._types, results = get_type_hints(arguments), get_type_hints(empty)["return"]
        self._arguments, self._results = arguments, None if results is Tensor else results
        self._result_names = () if results is Tensor else results._fields
        given = ", ".join(f"{_SCHEMA_TYPES[kind]} {field}" for field, kind in self._types.items())
        made = ", ".join(f"Tensor {field}" for field in self._result_names)
        _library.define(f"{name}({given}) -> {f'({made})' if made else 'Tensor'}")
        self._overload = getattr(torch.ops.pyft, name).default
        self.on_cpu, self.on_cuda = self._by_position(cpu), self._by_position(cuda)
        for kernel, key in ((self.on_cpu, "CPU"), (self.on_cuda, "CUDA")):
            if kernel is not None:
                _library.impl(name, kernel, key)
        register_fake(f"pyft::{name}", self._by_position(empty), lib=_library)
        if gradients is not None:
            node = _Node(name, self._types, self._result_names, gradients, keeps, twice)
            _library.impl(name, self._recorder(name, node, handle), "Autograd", with_keyset=True)
        OPERATIONS[name] = self

    def __call__(self, arguments: Any) -> Any:
        """Run it on the device of its tensors, and return the results."""
        results = self._overload(*arguments)
        return results if self._results is None else self._results(*results)

    def _by_position(self, function: Callable[[Any], Any] | None) -> Callable | None:
        """The function as torch calls it, without names."""
        arguments = self._arguments
        return None if function is None else lambda *values: function(arguments(*values))

    def _recorder(self, name: str, node: _Node, handle: Callable | None) -> Callable:
        """What the operation is to autograd: puts its nodes into the graph, and runs what is below."""
        redispatch = self._overload.redispatch
        tensors = [i for i, kind in enumerate(self._types.values()) if kind in (Tensor, Tensor | None)]

        def run(keyset: torch._C.DispatchKeySet, values: tuple) -> Any:
            with _BelowAutograd():
                return redispatch(keyset & _after_autograd, *values)

        def run_and_keep(ctx: Any, keyset: torch._C.DispatchKeySet, *values: Any) -> Any:
            results = run(keyset, values)
            node.keep(ctx, values, () if isinstance(results, Tensor) else results)
            return results

        def keep_alone(ctx: Any, keyset: torch._C.DispatchKeySet, *values: Any) -> Tensor:
            node.keep(ctx, values, ())
            return handle(self._arguments(*values))

        whole = _function(name, run_and_keep, node.backward)
        keeping = _function(name, keep_alone, node.backward)
        running = _function(
            f"{name}_product",
            lambda ctx, handle, keyset, values: run(keyset, values),
            lambda ctx, grad: (grad, None, None),
        )

        def record(keyset: torch._C.DispatchKeySet, *values: Any) -> Any:
            if not torch.is_grad_enabled() or not any(
                values[i] is not None and values[i].requires_grad for i in tensors
            ):
                return run(keyset, values)
            if handle is None or _watcher(False) is None:
                return whole.apply(keyset, *values)
            return running.apply(keeping.apply(keyset, *values), keyset, values)

        return record


def _function(name: str, forward: Callable, backward: Callable) -> type[Function]:
    return type(name, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


class _Node:
    """What a node of one operation keeps in the forward, and does with it in the backward."""

    def __init__(
        self,
        operation: str,
        types: dict[str, Any],
        result_names: tuple[str, ...],
        gradients: Callable[..., Mapping[str, Tensor]],
        keeps: tuple[str, ...],
        twice: bool,
    ) -> None:
        self._operation, self._twice = operation, twice
        self._names, self._gradients = list(types), gradients
        places = {name: place for place, name in enumerate((*types, *result_names))}
        self._numbers = [(name, places[name]) for name in types if "Tensor" not in _SCHEMA_TYPES[types[name]]]
        self._list = next((name for name in keeps if types.get(name) == list[Tensor | None]), None)
        self._list_place = places.get(self._list)
        self._tensors = [name for name in keeps if name != self._list]
        self._tensor_places = [places[name] for name in self._tensors]
        self._by_products = [places[name] for name in keeps if name in result_names]
        self._num_differentiable = max(1, len(result_names)) - len(self._by_products)

    def keep(self, ctx: Any, values: tuple, results: tuple) -> None:
        known = (*values, *results)
        ctx.numbers = {name: values[place] for name, place in self._numbers}
        in_list = () if self._list is None else values[self._list_place]
        ctx.save_for_backward(*[known[place] for place in self._tensor_places], *in_list)
        if self._num_differentiable == 1:
            ctx.set_materialize_grads(False)
        if self._by_products:
            ctx.mark_non_differentiable(*[known[place] for place in self._by_products])

    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * (1 + len(self._names))
        if torch.is_grad_enabled() and not self._twice:
            raise RuntimeError(
                f"{self._operation}: its gradients have no gradient of their own, "
                "and create_graph=True asks for one"
            )
        saved, kept = ctx.saved_tensors, SimpleNamespace(**ctx.numbers)
        vars(kept).update(zip(self._tensors, saved, strict=False))
        if self._list is not None:
            setattr(kept, self._list, list(saved[len(self._tensors) :]))
        wanted = set(itertools.compress(self._names, ctx.needs_input_grad[1:]))
        found = self._gradients(kept, wanted, *grads[: self._num_differentiable])
        return (None, *[found.get(name) if name in wanted else None for name in self._names])
