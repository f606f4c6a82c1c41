"""Both cross-entropies on a GPU: against float64, repeatable, on any stream, in a graph, in little memory."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, assert_equals_reference, gradients, random, random_targets
from torch import Tensor

from pyft.ops import reference
from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.cuda.matmul import multiply
from pyft.ops.linear_cross_entropy import linear_cross_entropy

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16]
FROZEN, TRAINED = (True, False, False), (True, True, True)
ALL = {"label_smoothing": 0.1, "z_loss": 0.02, "logit_scale": 0.7, "logit_softcap": 2.0}
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.02, "logit_scale": 0.7, "logit_softcap": 2.0}, ALL]


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return random(*shape, seed=seed, scale=scale, dtype=dtype).detach().cuda().requires_grad_()


def make_inputs(num_rows: int, width: int, vocabulary: int, trained: tuple, dtype: torch.dtype) -> list:
    """Hidden, head and bias, of which `trained` says whether they train."""
    shapes = ((num_rows, width), (vocabulary, width), (vocabulary,))
    leaves = [
        leaf(*shape, seed=i, dtype=dtype, scale=scale)
        for i, (shape, scale) in enumerate(zip(shapes, (1.0, 0.1, 1.0), strict=True))
    ]
    return [t.detach().requires_grad_(wants) for t, wants in zip(leaves, trained, strict=True)]


def count(targets: Tensor) -> int:
    return int((targets != -100).sum())


def results(inputs: list[Tensor], targets: Tensor, **options) -> list[Tensor]:
    return gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, **options), *inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_products_with_float32_results(accumulate, dtype):
    a, b = leaf(65, 129, seed=1, dtype=dtype).detach(), leaf(129, 33, seed=2, dtype=dtype).detach()
    wide = torch.empty(65, 2 * 136, device="cuda", dtype=dtype)
    wide[:, :129] = a
    out = torch.full((65, 40), 3.0, device="cuda")
    for factors in ((a, b), (wide[:, :129], b), (a.T.contiguous().T, b.T.contiguous().T)):
        out.fill_(3.0)
        multiply(*factors, out[:, :33], accumulate=accumulate)
        exact = a.double() @ b.double() + 3.0 * accumulate
        assert_close_to_reference(out[:, :33], exact, a.float() @ b.float() + 3.0 * accumulate)
        assert (out[:, 33:] == 3.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.02}])
@pytest.mark.parametrize(("num_rows", "vocabulary"), [(0, 5), (1, 3), (423, 1031), (33, 151936)])
def test_from_logits(num_rows, vocabulary, options, dtype):
    targets = random_targets(num_rows, vocabulary).cuda()
    assert_equals_reference(
        lambda x: cross_entropy(x, targets, **options),
        lambda x: reference.cross_entropy(x, targets, **options),
        leaf(num_rows, vocabulary, seed=1, scale=3.0, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED, (True, False, True), (False, True, False)])
@pytest.mark.parametrize("shape", [(1, 8, 5), (19, 33, 97), (423, 256, 10007), (3000, 64, 5003)])
def test_from_hidden_states(shape, trained, options, dtype):
    targets = random_targets(shape[0], shape[2]).cuda()
    for num_targets in (None, count(targets)):
        assert_equals_reference(
            lambda h, w, b, n=num_targets: linear_cross_entropy(
                h, w, targets, bias=b, num_targets=n, **options
            ),
            lambda h, w, b: reference.linear_cross_entropy(h, w, targets, bias=b, **options),
            *make_inputs(*shape, trained, dtype),
        )


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_masked_rows_may_hold_anything_and_get_zeros(trained):
    targets = random_targets(130, 1031).cuda()
    inputs = make_inputs(130, 64, 1031, trained, torch.bfloat16)
    with torch.no_grad():
        inputs[0][targets == -100] = float("nan")
    for num_targets in (None, count(targets)):
        found = results(inputs, targets, num_targets=num_targets)
        assert all(tensor.isfinite().all() for tensor in found)
        assert not found[1][targets == -100].any()


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_what_cannot_be_an_error_is_nan(trained):
    inputs = make_inputs(30, 64, 1031, trained, torch.bfloat16)
    targets = random_targets(30, 1031).cuda()
    for wrong in (count(targets) - 1, count(targets) + 1):
        assert results(inputs, targets, num_targets=wrong)[0].isnan()
    targets[4] = 1031
    found = results(inputs, targets)
    assert found[0].isnan() and found[1][4].isnan().all()
    logits = leaf(30, 1031, seed=1)
    found = gradients(lambda x: cross_entropy(x, targets), logits)
    assert found[0].isnan() and found[1][4].isnan().all() and found[1][0].isfinite().all()


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_runs_repeat_to_the_bit(trained):
    targets = random_targets(3000, 10007).cuda()
    inputs = make_inputs(3000, 64, 10007, trained, torch.bfloat16)
    first = results(inputs, targets, z_loss=0.02)
    for _ in range(3):
        assert all(
            torch.equal(a, b) for a, b in zip(results(inputs, targets, z_loss=0.02), first, strict=True)
        )


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_a_side_stream_waits_for_what_is_before_it(trained):
    targets = random_targets(423, 10007).cuda()
    inputs = make_inputs(423, 256, 10007, trained, torch.bfloat16)
    expected = results(inputs, targets)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        late = [torch.zeros_like(tensor) for tensor in inputs]
        late_targets = torch.zeros_like(targets)
        torch.cuda._sleep(50_000_000)
        for tensor, source in zip([*late, late_targets], [*inputs, targets], strict=True):
            tensor.copy_(source.detach())
        found = results(
            [t.requires_grad_(wants) for t, wants in zip(late, trained, strict=True)], late_targets
        )
    stream.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_targets", [None, 200])
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_a_graph_replays_on_new_values(trained, num_targets):
    targets = torch.arange(423, device="cuda") * 20
    targets[200:] = -100
    inputs = make_inputs(423, 256, 10007, trained, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(inputs, targets, num_targets=num_targets)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(inputs, targets, num_targets=num_targets)
    with torch.no_grad():
        inputs[0].mul_(0.5)
    targets.copy_(targets.flip(0))
    graph.replay()
    expected = results(inputs, targets, num_targets=num_targets)
    for ours, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("trained", "share"), [(FROZEN, 0.1), (TRAINED, 0.3)])
def test_the_logits_are_never_all_stored(trained, share):
    num_rows, width, vocabulary = 8192, 256, 65536
    targets = (torch.arange(num_rows) * 7).cuda()
    inputs = make_inputs(num_rows, width, vocabulary, trained, torch.bfloat16)
    results(inputs, targets)  # torch's own workspaces are there from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(inputs, targets)
    assert torch.cuda.max_memory_allocated() - before < share * 4 * num_rows * vocabulary


def test_what_does_not_fit_is_refused():
    hidden, head, bias = make_inputs(4, 8, 10, FROZEN, torch.float32)
    targets = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"linear_cross_entropy: .*cpu"):
        linear_cross_entropy(hidden, head, targets)
    with pytest.raises(ValueError, match=r"hidden.shape\[1\] is 7, head_weight expects 8"):
        linear_cross_entropy(hidden[:, :7], head, targets.cuda(), bias=bias)
