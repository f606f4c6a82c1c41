"""Where a test of an operation runs: on the CPU, on the CUDA kernels emulated there, and on a GPU.

The `backend` fixture (tests/ops/conftest.py) goes through all of them; `on_backends` gives a test shapes that
fit each: emulated kernels multiply some 50 million times a second, and a GPU is filled by more than a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from numerics import random, random_targets
from torch import Tensor

HAS_GPU = torch.cuda.is_available()


class Backend(NamedTuple):
    """`kernels` is the emulated module where `name` is emulated."""

    name: str
    device: str
    kernels: ModuleType | None = None

    def random(self, *shape: int, trained: bool = True, **options) -> Tensor:
        """The same normal numbers everywhere, as a leaf."""
        return random(*shape, **options).detach().to(self.device).requires_grad_(trained)

    def targets(self, num_rows: int, vocabulary: int, **options) -> Tensor:
        return random_targets(num_rows, vocabulary, **options).to(self.device)

    def tensor(self, values: object) -> Tensor:
        return torch.tensor(values, device=self.device)

    def full(self, *shape: int, value: float = float("nan"), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def reorder(self, seed: int) -> None:
        """Let emulated threads run in another order."""
        if self.kernels is not None:
            self.kernels.set_seed(seed)


CPU, GPU = Backend("cpu", "cpu"), Backend("cuda", "cuda")
# Emulated threads run in the order of seed 1, with --slow in two further ones; id -> marks.
BACKENDS = {"cpu": (), "emulated": (), "emulated_seed0": pytest.mark.slow, "emulated_seed2": pytest.mark.slow}
BACKENDS |= {"cuda": pytest.mark.cuda} if HAS_GPU else {}


def backend_params() -> list:
    return [pytest.param(name, marks=marks, id=name) for name, marks in BACKENDS.items()]


def on_backends(names: str, *every: Sequence, **only: Sequence[Sequence]) -> pytest.MarkDecorator:
    """Parametrise by values of `names`: `every` for each backend, `only` those of the backend of its name."""
    cases = []
    for name, marks in BACKENDS.items():
        for values in (*every, *only.get(name.split("_")[0], ())):
            described = "-".join(getattr(v, "__name__", str(v)).removeprefix("torch.") for v in values)
            cases.append(pytest.param(name, *values, marks=marks, id=f"{name}-{described}"))
    return pytest.mark.parametrize(f"backend, {names}", cases, indirect=["backend"])


# ---- on a GPU --------------------------------------------------------------------------------------------


def on_gpu(test):
    """For tests of streams, graphs and memory, which are a GPU's alone."""
    return pytest.mark.cuda(pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")(test))


def run_late(run, *given: Tensor, num_scratch: int = 0) -> object:
    """`run` on a side stream, with copies of the tensors that a slow producer fills there.

    What comes behind it on the stream overwrites the copies and `num_scratch` freed numbers.
    """
    late = [torch.zeros_like(tensor, requires_grad=False) for tensor in given]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for tensor, source in zip(late, given, strict=True):
            tensor.copy_(source.detach())
        found = run(*(t.requires_grad_(s.requires_grad) for t, s in zip(late, given, strict=True)))
        for tensor in late:
            tensor.detach().zero_()
        scratch = [torch.full((num_scratch,), float("nan"), device="cuda") for _ in range(2)]
    stream.synchronize()
    assert len(scratch) == 2
    return found


def capture(run) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of `run`, and the tensors that its replays fill."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


def assert_graph_follows(op, *leaves: Tensor) -> None:
    """A graph of `op` and its gradients gives, replayed on other values, what a plain run gives."""

    def step() -> list[Tensor]:
        outputs = op(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # Detached: outputs that live on keep the leaves' nodes, and with them the stream they were made on.
        values = [output.detach() for output in outputs]
        return [*values, *torch.autograd.grad(outputs, leaves, values)]

    graph, captured = capture(step)
    with torch.no_grad():
        for tensor in leaves:
            tensor.mul_(0.5)
    graph.replay()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(captured, step(), strict=True))
