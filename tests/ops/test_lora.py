"""lora_linear against float64 autograd on every kind of base, and what dropout promises."""

from __future__ import annotations

import pytest
import torch
from backends import CPU, GPU, Backend, capture, on_backends, on_gpu, run_late
from numerics import assert_close_to_reference, poisoned_empty
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyft.ops import native, reference
from pyft.ops.dropout import draw_seed, dropout_mask
from pyft.ops.lora import lora_linear

DTYPES = [torch.float32, torch.bfloat16]
SCALING = 0.25
NAMES = ("y", "dX", "dA", "dB")


class Layer:
    """Random inputs of one call: x [T, K], base [N, K], A [R, K], B [N, R], bias [N].

    `dense` is the base as numbers.
    """

    def __init__(
        self, backend: Backend, tokens: int, rows: int, columns: int, rank: int = 4, *, base: str = "dense",
        dtype: torch.dtype = torch.float32, bias: bool = True,
    ) -> None:  # fmt: skip
        draw, self.backend = backend.random, backend
        self.x = draw(tokens, columns, seed=1, dtype=dtype)
        weight = draw(rows, columns, seed=2, scale=columns**-0.5, dtype=dtype, trained=False)
        self.base, self.dense = weight, weight
        if base != "dense":
            quantized = reference.nf4_quantize(weight.cpu().float(), double_quant=base == "nf4 nested")
            self.dense = reference.nf4_dequantize(quantized, dtype).to(backend.device)
            parts = (None if part is None else part.to(backend.device) for part in quantized[:5])
            self.base = quantized._make((*parts, quantized.shape))
        self.A = draw(rank, columns, seed=3, scale=columns**-0.5)
        self.B = draw(rows, rank, seed=4)
        self.bias = draw(rows, seed=5, dtype=dtype, trained=False) if bias else None
        self.grad_y = draw(tokens, rows, seed=6, dtype=dtype, trained=False)

    def run(self, dropout: float = 0.0, x: Tensor | None = None) -> list[Tensor]:
        torch.manual_seed(11)
        x = self.x if x is None else x
        y = lora_linear(x, self.base, self.A, self.B, scaling=SCALING, dropout=dropout, bias=self.bias)
        return [y.detach(), *torch.autograd.grad(y, (x, self.A, self.B), self.grad_y)]

    def run_reference(self, dtype: torch.dtype | None, dropout: float) -> list[Tensor]:
        """In plain torch, in `dtype` or in the layer's own dtypes, with the mask of `run`."""
        torch.manual_seed(11)
        mask = dropout_mask(self.x.shape, dropout, draw_seed()).to(self.x.device) if dropout else None
        x, A, B = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (self.x, self.A, self.B))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.dense.to(x.dtype)
        y = reference.lora_linear(x, weight, A, B, scaling=SCALING, dropout=dropout, mask=mask, bias=bias)
        return [y.detach(), *torch.autograd.grad(y, (x, A, B), self.grad_y.to(y.dtype))]

    def assert_equals_reference(self, dropout: float = 0.0) -> None:
        # On a GPU, torch has all of it in one dtype.
        own = self.x.dtype if self.backend.name == "cuda" else None
        results = (
            self.run(dropout),
            self.run_reference(torch.float64, dropout),
            self.run_reference(own, dropout),
        )
        for name, ours, exact, torchs in zip(NAMES, *results, strict=True):
            assert_close_to_reference(ours, exact, torchs.to(ours.dtype), name=name)


# (T, N, K, R): one token; few; more than a tile; sizes that NF4's kernel for few tokens takes, and others.
@on_backends(
    "tokens, rows, columns, rank",
    (1, 132, 192, 8),
    (19, 70, 67, 1),
    (70, 130, 64, 16),
    (33, 64, 128, 33),
    (7, 24, 40, 64),
    (2, 9, 5, 70),
    (7, 1, 1, 1),
    cpu=[(1, 64, 64, 8), (19, 130, 67, 3), (423, 97, 131, 16), (2, 300, 5, 70), (1100, 270, 530, 5)],
    cuda=[
        (1, 512, 1024, 16),
        (19, 70, 67, 8),
        (70, 1000, 640, 33),
        (515, 1536, 2048, 64),
        (300, 130, 257, 150),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", ["dense", "nf4", "nf4 nested"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64(backend, tokens, rows, columns, rank, dtype, base, dropout):
    for bias in {True, tokens % 2 == 1}:
        layer = Layer(backend, tokens, rows, columns, rank, base=base, dtype=dtype, bias=bias)
        layer.assert_equals_reference(dropout)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize(("tokens", "base"), [(19, "nf4 nested"), (70, "dense")])
def test_an_addition_that_is_nothing_or_nearly_all(backend, tokens, base, factor):
    layer = Layer(backend, tokens, 40, 64, 8, base=base, dtype=torch.bfloat16, bias=tokens == 19)
    layer.B = (layer.B * factor).detach().requires_grad_()
    layer.assert_equals_reference()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_empty_batch(backend, base, dropout, monkeypatch):
    for dtype in DTYPES:
        layer = Layer(backend, 0, 40, 24, base=base, dtype=dtype)
        with monkeypatch.context() as patch:
            poisoned_empty(patch)
            y, grad_x, grad_A, grad_B = layer.run(dropout)
        assert y.shape == (0, 40) and grad_x.shape == (0, 24)
        assert torch.equal(grad_A, torch.zeros_like(layer.A)) and torch.equal(
            grad_B, torch.zeros_like(layer.B)
        )


@on_backends(
    "tokens, rows, columns, rank, base, dtype, dropout",
    *((19, 130, 67, 4, "nf4 nested", dtype, dropout) for dtype in DTYPES for dropout in (0.0, 0.3)),
    *((tokens, 130, 64, 16, base, torch.bfloat16, 0.1) for tokens in (19, 70) for base in ("dense", "nf4")),
    cuda=[
        (tokens, 1536, 1024, 16, base, torch.bfloat16, 0.1)
        for tokens in (17, 515)
        for base in ("dense", "nf4 nested")
    ],
)
def test_every_output_is_written_and_the_bits_are_fixed(
    backend, tokens, rows, columns, rank, base, dtype, dropout, monkeypatch
):
    layer = Layer(backend, tokens, rows, columns, rank, base=base, dtype=dtype)
    expected = layer.run(dropout)
    poisoned_empty(monkeypatch)
    for seed in range(2 if backend.name != "cuda" else 5):
        backend.reorder(seed + 10)
        for name, result, first in zip(NAMES, layer.run(dropout), expected, strict=True):
            assert torch.equal(result, first), name


def test_leading_dimensions_and_non_contiguous_inputs(backend):
    layer = Layer(backend, 30, 64, 48)
    expected = layer.run()
    x = layer.x.detach().view(5, 6, 48).permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    lora_A = layer.A.detach().T.contiguous().T.requires_grad_()
    lora_B = layer.B.detach().T.contiguous().T.requires_grad_()
    weight = layer.base.T.contiguous().T
    assert not any(t.is_contiguous() for t in (x, lora_A, lora_B, weight))
    y = lora_linear(x, weight, lora_A, lora_B, scaling=SCALING, bias=layer.bias)
    grad_y = layer.grad_y.view(5, 6, 64).transpose(0, 1).contiguous().transpose(0, 1)
    results = [y, *torch.autograd.grad(y, (x, lora_A, lora_B), grad_y)]
    for result, clean in zip(results, expected, strict=True):
        assert torch.equal(result.reshape(clean.shape), clean)


def test_a_base_of_another_dtype(backend):
    layer = Layer(backend, 5, 40, 24, dtype=torch.bfloat16)
    expected = layer.run()
    layer.base = layer.base.float()
    for name, result, first in zip(NAMES, layer.run(), expected, strict=True):
        assert torch.equal(result, first), name


@pytest.mark.parametrize("wanted", ["x", "A", "B", "bias", "x B", "A B"])
def test_only_the_gradients_that_are_wanted(backend, wanted):
    wanted = wanted.split()
    layer = Layer(backend, 19, 40, 24)
    expected = dict(zip(("y", "x", "A", "B"), layer.run(), strict=True)) | {"bias": layer.grad_y.sum(0)}
    leaves = {"x": layer.x, "A": layer.A, "B": layer.B, "bias": layer.bias}
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in leaves.items()}
    y = lora_linear(leaves["x"], layer.base, leaves["A"], leaves["B"], scaling=SCALING, bias=leaves["bias"])
    y.backward(layer.grad_y)
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted)
        if name == "bias" and name in wanted:
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-5, atol=1e-6)
        elif name in wanted and backend.name == "cpu":
            assert torch.equal(leaf.grad, expected[name]), name
        elif name in wanted:  # CUDA kernels sum dS alone in other parts than together with dB
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_zero_B_adds_nothing(backend):
    layer = Layer(backend, 19, 40, 24)
    y = lora_linear(layer.x, layer.base, layer.A, torch.zeros_like(layer.B), scaling=SCALING, dropout=0.5)
    plain = lora_linear(layer.x, layer.base, torch.zeros_like(layer.A), layer.B, scaling=SCALING)
    assert torch.equal(y, plain)


def seen_masks(backend: Backend, tokens: int, width: int, dropout: float) -> tuple[Tensor, Tensor]:
    """What forward and backward let through: ones through an identity adapter on a zero base."""
    ones = torch.ones(tokens, width, device=backend.device, requires_grad=True)
    identity = torch.eye(width, device=backend.device)
    y = lora_linear(ones, torch.zeros_like(identity), identity, identity, scaling=1.0, dropout=dropout)
    return y.detach(), torch.autograd.grad(y, ones, torch.ones_like(y))[0]


@on_backends("tokens", cpu=[(600,)], emulated=[(60,)], cuda=[(600,)])
@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.4, 0.5])
def test_the_mask_is_the_defined_one_in_both_directions_and_unbiased(backend, tokens, dropout):
    torch.manual_seed(3)
    forward, backward = seen_masks(backend, tokens, 130, dropout)
    torch.manual_seed(3)
    mask = dropout_mask((tokens, 130), dropout, draw_seed()).to(backend.device)
    for seen in (forward, backward):
        assert torch.equal(seen != 0, mask)
        if backend.name != "cuda":
            assert torch.equal(seen, mask.float() * (1 / (1 - dropout)))
    assert abs(forward.mean().item() - 1) < 4 * (dropout / (1 - dropout) / forward.numel()) ** 0.5


def test_calls_differ_and_follow_the_generators_state(backend):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (seen_masks(backend, 64, 64, 0.5)[0] for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(seen_masks(backend, 64, 64, 0.5)[0], first)
    assert torch.equal(seen_masks(backend, 64, 64, 0.5)[0], second)


def test_no_dropout_leaves_the_generator_alone(backend):
    layer, state = Layer(backend, 3, 8, 8), torch.get_rng_state()
    lora_linear(layer.x, layer.base, layer.A, layer.B, scaling=SCALING).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpoint_recomputes_the_same_mask(backend, dtype, base):
    layer = Layer(backend, 19, 64, 64, base=base, dtype=dtype)

    def two_layers(x: Tensor) -> Tensor:
        for _ in range(2):
            x = lora_linear(x, layer.base, layer.A, layer.B, scaling=SCALING, dropout=0.5).tanh()
        return x

    results = []
    for run in (two_layers, lambda x: checkpoint(two_layers, x, use_reentrant=False)):
        torch.manual_seed(0)
        y = run(layer.x)
        results.append([y.detach(), *torch.autograd.grad(y, (layer.x, layer.A, layer.B), layer.grad_y)])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_one_native_call_for_each_direction(backend, base, monkeypatch):
    """Beside the product with the base, which on CUDA is torch's or NF4's own."""
    layer, kernels, calls = Layer(backend, 70, 40, 64, base=base), backend.kernels or native.C, []
    layer.run(0.1)  # plans are made once for each shape

    def recorded(name, function):
        return lambda **arguments: (calls.append(name), function(**arguments))[1]

    for name, function in list(vars(kernels).items()):
        if callable(function) and "lora" in name:
            monkeypatch.setattr(kernels, name, recorded(name, function))
    layer.run(0.1)
    kind = "linear" if backend.name == "cpu" else "addition"
    assert calls == [f"lora_{kind}", f"lora_{kind}_backward"]


def test_errors_name_what_is_wrong(backend):
    layer = Layer(backend, 5, 40, 24, base="nf4 nested")
    given = {"x": layer.x, "weight": layer.base, "lora_A": layer.A, "lora_B": layer.B, "bias": layer.bias}
    for changed, message in (
        ({"x": layer.x[:, :23]}, r"x.shape\[-1\] is 23, weight expects 24"),
        ({"lora_A": layer.A[:, :23]}, r"lora_A.shape\[1\] is 23, weight expects 24"),
        ({"lora_B": layer.B[:39]}, r"lora_B.shape\[0\] is 39, weight expects 40"),
        ({"lora_B": layer.B[:, :3]}, r"lora_B.shape\[1\] is 3, lora_A expects 4"),
        ({"lora_A": layer.A.bfloat16()}, "lora_A.dtype is bfloat16, expected float32"),
        ({"x": layer.x.double()}, "x.dtype is float64, expected float32 or bfloat16"),
        ({"bias": layer.bias.bfloat16()}, "bias.dtype is bfloat16, expected float32"),
        ({"bias": layer.bias[:39]}, r"bias.shape\[0\] is 39, weight expects 40"),
        *(
            ({"dropout": dropout}, f"dropout is {dropout}, expected 0 <= dropout < 1")
            for dropout in (1.0, -0.1, float("nan"))
        ),
        (
            {"weight": layer.dense.clone().requires_grad_()},
            "weight requires a gradient; the base of an adapter is frozen",
        ),
    ):
        with pytest.raises(ValueError, match=f"lora_linear: {message}"):
            lora_linear(**({"scaling": 1.0} | given | changed))


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_opcheck(backend, base):
    layer = Layer(backend, 3, 8, 6, rank=2, base=base)
    weight = [layer.base] if base == "dense" else layer.base.parts
    arguments = (layer.x, weight, layer.dense.shape, layer.A, layer.B, layer.bias, SCALING, 0.3, 1234)
    torch.library.opcheck(torch.ops.pyft.lora_linear, arguments)


# ---- on the CPU alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_same_bits_on_any_number_of_threads(base):
    layer = Layer(CPU, 150, 700, 300, base=base)
    before = torch.get_num_threads()
    runs = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(layer.run(0.1))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for name, result, first in zip(NAMES, run, runs[0], strict=True):
            assert torch.equal(result, first), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_last_product_of_a_checkpoint_is_not_computed_again(dropout, monkeypatch):
    layers = [Layer(CPU, 5, 8, 8, rank=2, base="nf4 nested"), Layer(CPU, 5, 8, 8, rank=2, base="nf4 nested")]
    calls = []
    run = native.C.lora_linear

    def counted(**arguments):
        calls.append(arguments["y"].shape[1])
        run(**arguments)

    def block(x):
        for layer in layers:
            x = lora_linear(x, layer.base, layer.A, layer.B, scaling=SCALING, dropout=dropout)
        return x

    leaves = [layers[0].x, *(tensor for layer in layers for tensor in (layer.A, layer.B))]
    torch.manual_seed(0)
    expected = torch.autograd.grad(block(leaves[0]).square().sum(), leaves)
    monkeypatch.setattr(native.C, "lora_linear", counted)
    torch.manual_seed(0)
    loss = checkpoint(block, leaves[0], use_reentrant=False).square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert calls == [8, 8, 8]  # both forward, and the first again


# ---- on a GPU alone --------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_on_a_side_stream_behind_a_slow_producer(base):
    layer = Layer(GPU, 515, 1536, 1024, 16, base=base, dtype=torch.bfloat16)
    expected = layer.run(0.1)
    found = run_late(lambda x: layer.run(0.1, x), layer.x)
    for name, result, clean in zip(NAMES, found, expected, strict=True):
        assert torch.equal(result, clean), name


@on_gpu
@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
@pytest.mark.parametrize("tokens", [17, 515])
def test_in_a_cuda_graph(tokens, base):
    layer = Layer(GPU, tokens, 1536, 1024, 16, base=base, dtype=torch.bfloat16)
    graph, results = capture(layer.run)
    with torch.no_grad():
        layer.x.mul_(0.5)
    graph.replay()
    captured = [result.clone() for result in results]
    for name, result, eager in zip(NAMES, captured, layer.run(), strict=True):
        assert torch.equal(result, eager), name
