"""Both cross-entropies against float64 autograd, and what they promise about rows and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from numerics import assert_equals_reference, gradients, poisoned_empty, random, random_targets
from torch import Tensor

from pyft.ops import native, reference
from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.linear_cross_entropy import linear_cross_entropy

DTYPES = [torch.float32, torch.bfloat16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
LARGE = 16411  # a vocabulary that goes by panels, in two passes when the head trains


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 19, 423])
@pytest.mark.parametrize("vocabulary", [3, 97, 1031])
def test_cross_entropy_equals_float64(num_rows, vocabulary, dtype):
    targets = random_targets(num_rows, vocabulary)
    logits = random(num_rows, vocabulary, scale=3.0, dtype=dtype)
    assert_equals_reference(
        lambda x: cross_entropy(x, targets), lambda x: reference.cross_entropy(x, targets), logits
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("num_rows", "width", "vocabulary"), [(1, 8, 5), (19, 33, 97), (423, 72, 1031)])
def test_linear_cross_entropy_equals_float64(num_rows, width, vocabulary, trained, dtype):
    targets = random_targets(num_rows, vocabulary)
    hidden = random(num_rows, width, seed=1, dtype=dtype)
    head = random(vocabulary, width, seed=2, scale=0.3, dtype=dtype).detach().requires_grad_(trained)
    assert_equals_reference(
        lambda h, w: linear_cross_entropy(h, w, targets),
        lambda h, w: reference.linear_cross_entropy(h, w, targets),
        hidden,
        head,
    )


@pytest.mark.parametrize(
    ("num_rows", "vocabulary", "trained", "dtype"),
    [
        (150, 131071, True, torch.float32),
        (1100, 20011, True, torch.float32),
        (1100, 20011, True, torch.bfloat16),
        (3, 20011, True, torch.bfloat16),
        (1100, 20011, False, torch.float32),
        (1100, 20011, False, torch.bfloat16),
        (3, 20011, False, torch.float32),
    ],
)
def test_linear_cross_entropy_of_a_large_vocabulary(num_rows, vocabulary, trained, dtype):
    plan = native.C.plan_linear_cross_entropy(
        num_tokens=num_rows, width=5, vocabulary=vocabulary, trains_head=trained, smooths=False
    )
    assert (plan["by_panels"], plan["by_two_passes"]) == (not trained, trained)
    targets = random_targets(num_rows, vocabulary)
    targets[2:] = torch.arange(num_rows - 2) * (vocabulary // num_rows)
    targets[num_rows // 2] = -100
    if num_rows != 3:  # more than one block of rows, most of their logits not kept
        least = plan["kept_rows"] if trained else plan["chunk_tokens"]
        assert int((targets != -100).sum()) > 2 * least
    hidden = random(num_rows, 5, seed=1, dtype=dtype)
    head = random(vocabulary, 5, seed=2, scale=3.0, dtype=dtype).detach().requires_grad_(trained)
    assert_equals_reference(
        lambda h, w: linear_cross_entropy(h, w, targets),
        lambda h, w: reference.linear_cross_entropy(h, w, targets),
        hidden,
        head,
    )


@pytest.mark.parametrize("vocabulary", [97, LARGE])
@pytest.mark.parametrize("only", ["hidden", "head"])
def test_linear_cross_entropy_gives_only_the_gradient_that_is_wanted(only, vocabulary):
    targets = random_targets(19, vocabulary)
    hidden = random(19, 33, seed=1).detach().requires_grad_(only == "hidden")
    head = random(vocabulary, 33, seed=2, scale=0.3).detach().requires_grad_(only == "head")
    assert_equals_reference(
        lambda h, w: linear_cross_entropy(h, w, targets),
        lambda h, w: reference.linear_cross_entropy(h, w, targets),
        hidden,
        head,
    )


def run_both(hidden: Tensor, head: Tensor, targets: Tensor, **options) -> dict[str, list[Tensor]]:
    logits = (hidden @ head.T).detach().requires_grad_()
    return {
        "cross_entropy": gradients(lambda x: cross_entropy(x, targets, **options), logits),
        "linear_cross_entropy": gradients(
            lambda h, w: linear_cross_entropy(h, w, targets, **options), hidden, head
        ),
    }


@pytest.mark.parametrize("vocabulary", [50, LARGE])
@pytest.mark.parametrize("num_rows", [0, 7])
def test_no_counted_row_gives_zero_and_zero_gradients(num_rows, vocabulary, monkeypatch):
    hidden, head = random(num_rows, 16, seed=1), random(vocabulary, 16, seed=2)
    poisoned_empty(monkeypatch)
    for results in run_both(hidden, head, torch.full((num_rows,), -100)).values():
        assert results[0].item() == 0.0
        for gradient in results[1:]:
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("vocabulary", [101, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_exact_zeros_even_on_poison(dtype, vocabulary, monkeypatch):
    hidden, head = random(23, 16, seed=1, dtype=dtype), random(vocabulary, 16, seed=2, dtype=dtype)
    targets = random_targets(23, vocabulary)
    expected = run_both(hidden, head, targets)
    poisoned_empty(monkeypatch)
    poisoned = run_both(hidden, head, targets)
    for op, results in poisoned.items():
        for result, clean in zip(results, expected[op], strict=True):
            assert torch.equal(result, clean), op
        ignored = results[1][targets == -100]
        assert torch.equal(ignored, torch.zeros_like(ignored)), op
        assert results[1][targets != -100].abs().amax(dim=1).min() > 0, op


@pytest.mark.parametrize("vocabulary", [101, LARGE])
def test_ignored_rows_may_hold_anything(vocabulary):
    targets = random_targets(23, vocabulary)
    hidden, head = random(23, 16, seed=1), random(vocabulary, 16, seed=2)
    expected = run_both(hidden, head, targets)
    dirty = hidden.detach().clone()
    dirty[targets == -100] = float("nan")
    for op, results in run_both(dirty.requires_grad_(), head, targets).items():
        for result, clean in zip(results, expected[op], strict=True):
            assert torch.equal(result, clean), op


def test_one_counted_row_and_another_ignore_index():
    hidden, head = random(9, 16, seed=1), random(50, 16, seed=2)
    targets = torch.full((9,), 7)
    targets[4] = 49
    for results in run_both(hidden, head, targets, ignore_index=7).values():
        logits = (hidden.double() @ head.double().T)[4]
        assert results[0].item() == pytest.approx((logits.logsumexp(0) - logits[49]).item(), rel=1e-6)
        assert (results[1].abs().amax(dim=1) > 0).tolist() == [row == 4 for row in range(9)]


def test_last_vocabulary_id_and_one_entry_vocabulary():
    hidden, head = random(5, 16, seed=1), random(1, 16, seed=2)
    for results in run_both(hidden, head, torch.zeros(5, dtype=torch.int64)).values():
        assert results[0].item() == 0.0
        assert all(not gradient.any() for gradient in results[1:])


@pytest.mark.parametrize("vocabulary", [97, LARGE])
def test_non_contiguous_inputs(vocabulary):
    targets = torch.stack([random_targets(19, vocabulary)] * 2, dim=1)[:, 0]
    hidden, head = random(33, 19, seed=1).T, random(33, vocabulary, seed=2).T
    logits = random(vocabulary, 19, seed=3).T
    assert not any(t.is_contiguous() for t in (targets, hidden, head, logits))
    ours = gradients(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head)
    dense = gradients(
        lambda h, w: linear_cross_entropy(h, w, targets), hidden.contiguous(), head.contiguous()
    )
    ours += gradients(lambda x: cross_entropy(x, targets), logits)
    dense += gradients(lambda x: cross_entropy(x, targets), logits.contiguous())
    for result, expected in zip(ours, dense, strict=True):
        assert torch.equal(result, expected)


def test_large_logits_neither_overflow_nor_lose_the_row():
    logits = torch.tensor(
        [[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0], [5.0, float("-inf"), 5.0]], requires_grad=True
    )
    value, gradient = gradients(lambda x: cross_entropy(x, torch.tensor([0, 1, 0])), logits, scale=1.0)
    assert value.item() == pytest.approx(0.6931472, rel=1e-6)
    assert torch.allclose(gradient, torch.tensor([[0, 0, 0], [0, 0, 0], [-0.5, 0, 0.5]]), atol=1e-7)


@pytest.mark.parametrize("vocabulary", [50, LARGE])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_show_in_the_loss(bad, vocabulary):
    hidden, head = random(9, 16, seed=1).detach(), random(vocabulary, 16, seed=2)
    hidden[3, 3] = bad
    targets = torch.arange(9)
    assert linear_cross_entropy(hidden, head, targets).isnan()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, head, targets).isnan()
        assert cross_entropy(hidden @ head.T, targets).isnan()


@pytest.mark.parametrize(("vocabulary", "trained"), [(5003, True), (17011, False), (17011, True)])
def test_same_bits_on_any_number_of_threads(vocabulary, trained):
    hidden, head = random(150, 40, seed=1), random(vocabulary, 40, seed=2).requires_grad_(trained)
    targets = random_targets(150, vocabulary)
    before = torch.get_num_threads()
    try:
        runs = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(run_both(hidden, head, targets))
    finally:
        torch.set_num_threads(before)
    # the product that makes cross_entropy's logits is torch's, so only ours is compared
    for run in runs[1:]:
        for result, first in zip(run["linear_cross_entropy"], runs[0]["linear_cross_entropy"], strict=True):
            assert torch.equal(result, first)
    logits = random(150, vocabulary, seed=3)
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(gradients(lambda x: cross_entropy(x, targets), logits))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_errors_name_what_is_wrong():
    hidden, head, targets = random(4, 8), random(10, 8), torch.tensor([0, 1, 10, 2])
    logits = random(4, 10)
    with pytest.raises(IndexError, match=r"linear_cross_entropy: targets\[2\] is 10, .*10"):
        linear_cross_entropy(hidden, head, targets)
    with pytest.raises(IndexError, match=r"cross_entropy: targets\[2\] is 10, .*10"):
        cross_entropy(logits, targets)
    with pytest.raises(IndexError, match=r"targets\[0\] is -1"):
        cross_entropy(logits, torch.tensor([-1, 0, 0, 0]))
    good = torch.tensor([0, 1, 9, 2])
    with pytest.raises(
        ValueError, match=r"linear_cross_entropy: hidden.shape\[1\] is 7, head_weight expects 8"
    ):
        linear_cross_entropy(hidden[:, :7], head, good)
    with pytest.raises(ValueError, match=r"targets.shape\[0\] is 3, hidden expects 4"):
        linear_cross_entropy(hidden, head, good[:3])
    with pytest.raises(ValueError, match=r"targets.shape\[0\] is 3, logits expects 4"):
        cross_entropy(logits, good[:3])
    with pytest.raises(ValueError, match=r"targets.dtype is int32, expected int64"):
        cross_entropy(logits, good.int())
    with pytest.raises(ValueError, match=r"logits.dtype is float64, expected float32 or bfloat16"):
        cross_entropy(logits.double(), good)
    with pytest.raises(ValueError, match=r"head_weight.dtype is bfloat16, expected float32"):
        linear_cross_entropy(hidden, head.bfloat16(), good)
    with pytest.raises(ValueError, match=r"cross_entropy: logits has shape \[4, 10, 1\], expected \[T, V\]"):
        cross_entropy(logits.unsqueeze(2), good)


def test_opcheck():
    targets = random_targets(7, 11)
    hidden, head = random(7, 5), random(11, 5)
    bias, terms, all_three = random(11), [0.5, 5.0, 0.1, 0.01], [True] * 3
    stats, kept = torch.rand(7, 2) + 1.0, torch.rand(4, 11)
    inputs = (hidden, head, bias, targets)
    frozen = [tensor.detach() for tensor in inputs]
    for op, arguments in (
        (torch.ops.pyft.cross_entropy, (random(7, 11), targets, -100, 0.1, 0.01)),
        (torch.ops.pyft.linear_cross_entropy, (*inputs, -100, terms, all_three, None)),
        (
            torch.ops.pyft.linear_cross_entropy,
            (hidden, head, None, targets, -100, terms, [True, True, False], None),
        ),
        (torch.ops.pyft.linear_cross_entropy_forward, (*inputs[:3], torch.arange(7), -100, terms, 4)),
        (
            torch.ops.pyft.linear_cross_entropy_backward,
            (torch.ones(()), *frozen, stats, kept, -100, terms, all_three),
        ),
    ):
        torch.library.opcheck(op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("vocabulary", [11, LARGE])
def test_backward_twice_gives_the_same(vocabulary):
    hidden, head = random(7, 5), random(vocabulary, 5)
    loss = linear_cross_entropy(hidden, head, random_targets(7, vocabulary))
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    second = torch.autograd.grad(loss * 2, (hidden, head))
    assert all(torch.allclose(2 * a, b, rtol=1e-6) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("trained", [False, True])
def test_logits_are_never_all_stored(trained):
    # 4096 rows x 65536 entries would be 1 GiB of float32; the process may grow by a tenth of it
    code = f"""
import resource, torch
from pyft.ops.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(2)
hidden = torch.randn(4096, 4, requires_grad=True)
head = torch.randn(65536, 4, requires_grad={trained})
targets = torch.randint(65536, (4096,))
linear_cross_entropy(hidden[:8], head, targets[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(hidden, head, targets).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 0.1 * 4096 * 65536 * 4
