"""`linear_cross_entropy` as on a GPU: compositions of kernels and products against float64 autograd."""

from __future__ import annotations

import functools

import pytest
import torch
from numerics import assert_equals_reference, gradients, poisoned_empty, random, random_targets
from torch import Tensor

from pyft.ops import reference
from pyft.ops.cuda import linear_cross_entropy as composition
from pyft.ops.linear_cross_entropy import linear_cross_entropy

DTYPES = [torch.float32, torch.bfloat16]
FROZEN, TRAINED = (True, False, False), (True, True, True)
ALL = {"label_smoothing": 0.1, "z_loss": 0.02, "logit_scale": 0.7, "logit_softcap": 2.0}
OPTIONS = {
    "plain": {},
    "scale": {"logit_scale": 0.3},
    "softcap": {"logit_softcap": 2.0},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.02},
    "panels": {"z_loss": 0.02, "logit_scale": 0.7, "logit_softcap": 2.0},
    "all": ALL,
}


@pytest.fixture
def plans(emulated_ops, monkeypatch) -> list:
    """Small panels and chunks, so that there are several; collects the plans that were followed."""
    made = []
    poisoned_empty(monkeypatch)
    small = functools.partial(
        composition.plan_linear_cross_entropy,
        panel_ids=32,
        panel_rows=5,
        frozen_chunk_rows=4,
        trained_chunk_rows=3,
    )

    def plan(*args, **options):
        made.append(small(*args, **options))
        return made[-1]

    monkeypatch.setattr(composition, "plan_linear_cross_entropy", plan)
    return made


def make_inputs(
    num_rows: int, width: int, vocabulary: int, trained: tuple, dtype=torch.float32, scale=0.3
) -> list[Tensor]:
    """Hidden, head and bias, of which `trained` says whether they train."""
    inputs = [
        random(num_rows, width, seed=1, dtype=dtype),
        random(vocabulary, width, seed=2, scale=scale, dtype=dtype),
        random(vocabulary, seed=3, dtype=dtype),
    ]
    return [tensor.detach().requires_grad_(t) for tensor, t in zip(inputs, trained, strict=True)]


def check(inputs: list[Tensor], targets: Tensor, num_targets: int | None = None, **options) -> None:
    def ours(hidden, head, bias=None):
        return linear_cross_entropy(hidden, head, targets, bias=bias, num_targets=num_targets, **options)

    def theirs(hidden, head, bias=None):
        return reference.linear_cross_entropy(hidden, head, targets, bias=bias, **options)

    assert_equals_reference(ours, theirs, *inputs)


def count(targets: Tensor) -> int:
    return int((targets != -100).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_term(plans, options, trained, dtype):
    targets = random_targets(13, 73)
    num_targets = count(targets) if dtype == torch.bfloat16 else None
    inputs = make_inputs(13, 3, 73, trained, dtype)
    check(inputs if options else inputs[:2], targets, num_targets, **options)
    plan, by_panels = plans[-1], trained == FROZEN and "label_smoothing" not in options
    assert (plan.by_panels, plan.num_rows) == (by_panels, num_targets or 13)
    assert len(plan.panels(73)) == (3 if by_panels else 1) and len(plan.chunks) > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "trained", [(True, True, False), (True, False, True), (False, True, False), (False, False, True)]
)
def test_only_gradients_that_are_wanted(plans, trained, dtype):
    targets = random_targets(7, 41)
    check(make_inputs(7, 4, 41, trained, dtype), targets, count(targets), **ALL)
    if trained[1]:  # bfloat16 sums the head's gradient over chunks only where that costs no less
        assert plans[-1].sums_head == (dtype == torch.bfloat16 and count(targets) > 3 + 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_heads_gradient_is_summed_over_chunks(plans, dtype):
    targets = torch.arange(17) * 2
    check(make_inputs(17, 5, 41, TRAINED, dtype), targets, **ALL)
    assert len(plans[-1].chunks) == 6 and plans[-1].sums_head == (dtype == torch.bfloat16)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_alone_goes_by_panels(plans, options):
    targets = random_targets(7, 97)
    inputs = make_inputs(7, 9, 97, TRAINED)
    with torch.no_grad():
        loss = linear_cross_entropy(*inputs[:2], targets, bias=inputs[2], **options)
    assert plans[-1].by_panels and len(plans[-1].panels(97)) == 4
    expected = reference.linear_cross_entropy(
        *(t.detach().double() for t in inputs[:2]), targets, bias=inputs[2].detach().double(), **options
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("shape", [(1, 8, 1), (3, 16, 5003), (2, 3, 4096), (5, 40, 33)])
def test_sizes_as_they_are_planned(emulated_ops, shape, trained, dtype):
    check(make_inputs(*shape, trained, dtype), random_targets(shape[0], shape[2]))
    check(make_inputs(*shape, trained, dtype), torch.full((shape[0],), shape[2] - 1), logit_softcap=3.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_confident_rows_and_a_reference_that_grows(plans, dtype):
    # The logits rise by 1, by 10 or by nothing from panel to panel, and the target has nearly all of the
    # softmax, first or last.
    rise = torch.tensor([1.0, 10.0, 0.0, -10.0])[:, None] * (torch.arange(97) // 32)
    bias = rise.clone()
    bias[:, 96] += 6.0
    for row, target in ((0, 96), (1, 96), (1, 50), (2, 96), (3, 0), (3, 96)):
        inputs = make_inputs(2, 16, 97, FROZEN, dtype, scale=0.1)
        inputs[2] = bias[row].to(dtype)
        check(inputs, torch.tensor([target, -100]))


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_masked_rows_may_hold_anything_and_get_zeros(plans, trained):
    targets = random_targets(13, 41)
    hidden, head, bias = make_inputs(13, 6, 41, trained)
    dirty = hidden.detach().clone()
    dirty[targets == -100] = float("nan")
    for num_targets in (None, count(targets)):
        runs = [
            gradients(
                lambda *inputs, n=num_targets: linear_cross_entropy(
                    *inputs[:2], targets, bias=inputs[2], num_targets=n
                ),
                first,
                head,
                bias,
            )
            for first in (hidden, dirty.requires_grad_())
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert not runs[0][1][targets == -100].any()


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("num_rows", [0, 7])
def test_no_counted_row_gives_zero_and_zero_gradients(plans, num_rows, trained):
    targets = torch.full((num_rows,), -100)
    for num_targets in (None, 0):
        results = gradients(
            lambda h, w, b, n=num_targets: linear_cross_entropy(
                h, w, targets, bias=b, num_targets=n, z_loss=0.1
            ),
            *make_inputs(num_rows, 6, 41, trained),
        )
        assert all(torch.equal(result, torch.zeros_like(result)) for result in results)


def test_few_counted_among_many_rows(plans):
    targets = torch.full((2500,), -100)
    targets[[0, 1, 1024, 1299, 1300, 2499]] = torch.tensor([0, 6, 3, 2, 5, 1])
    for trained in (FROZEN, TRAINED):
        check(make_inputs(2500, 2, 7, trained), targets, 6)


@pytest.mark.parametrize("ignore_index", [-1, 7])
def test_one_counted_row_and_another_ignore_index(plans, ignore_index):
    targets = torch.full((9,), ignore_index)
    targets[4] = 40
    for num_targets in (None, 1):
        check(make_inputs(9, 6, 41, FROZEN), targets, num_targets, ignore_index=ignore_index)


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("num_targets", [0, 3, 5, 13])
def test_a_wrong_number_of_targets_shows(plans, num_targets, trained):
    targets = torch.full((13,), -100)
    targets[[2, 5, 6, 12]] = torch.tensor([0, 40, 3, 9])
    inputs = make_inputs(13, 6, 41, trained)
    results = gradients(
        lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, num_targets=num_targets), *inputs
    )
    assert results[0].isnan()
    assert num_targets == 0 or results[1].isnan().any()


def test_a_number_of_targets_that_cannot_be_is_refused(plans):
    inputs = make_inputs(13, 6, 41, FROZEN)
    for number in (-1, 14):
        with pytest.raises(ValueError, match=f"num_targets is {number}, targets has 13 elements"):
            linear_cross_entropy(*inputs[:2], torch.zeros(13, dtype=torch.int64), num_targets=number)


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("target", [-1, 41, 2**40])
def test_a_target_outside_the_vocabulary_shows(plans, target, trained):
    results = gradients(
        lambda h, w, b: linear_cross_entropy(h, w, torch.tensor([3, target]), bias=b),
        *make_inputs(2, 6, 41, trained),
    )
    assert results[0].isnan() and results[1][1].isnan().all() and results[1][0].isfinite().all()


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_same_inputs_same_bits(plans, trained):
    targets = random_targets(13, 97)
    inputs = make_inputs(13, 6, 97, trained, torch.bfloat16, scale=3.0)
    options = {name: value for name, value in ALL.items() if trained == TRAINED or name != "label_smoothing"}
    first, second = (
        gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, **options), *inputs)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_entries_that_a_bias_excludes(plans):
    hidden, head, bias = make_inputs(3, 6, 97, FROZEN)
    bias[:64] = float("-inf")  # two whole panels and more
    check([hidden, head, bias], torch.tensor([70, -100, 96]))


def test_non_contiguous_inputs(plans):
    targets = torch.stack([random_targets(9, 41)] * 2, dim=1)[:, 0]
    hidden, head = random(12, 9, seed=1).T, random(12, 41, seed=2).T
    for leaves in ((hidden, head), (hidden, head.detach())):
        check(list(leaves), targets)


def test_errors_name_what_is_wrong(plans):
    hidden, head, bias = make_inputs(4, 8, 10, FROZEN)
    targets = torch.tensor([0, 1, 9, 2])
    for arguments, options, message in (
        ((hidden[:, :7], head, targets), {}, r"hidden.shape\[1\] is 7, head_weight expects 8"),
        ((hidden, head.bfloat16(), targets), {}, r"head_weight.dtype is bfloat16, expected float32"),
        ((hidden, head, targets[:3]), {}, r"targets.shape\[0\] is 3, hidden expects 4"),
        ((hidden, head, targets.int()), {}, r"targets.dtype is int32, expected int64"),
        ((hidden, head, targets), {"bias": bias[:9]}, r"bias.shape\[0\] is 9, weight expects 10"),
        ((hidden, head, targets), {"label_smoothing": 1.5}, r"label_smoothing is 1.5"),
        ((hidden.double(), head, targets), {}, r"hidden.dtype is float64, expected float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"linear_cross_entropy: {message}"):
            linear_cross_entropy(*arguments, **options)


def test_opcheck(emulated_ops):
    targets = random_targets(5, 11)
    inputs = make_inputs(5, 6, 11, TRAINED, torch.bfloat16)
    terms = [0.5, 5.0, 0.1, 0.01]
    for num_targets in (None, count(targets)):
        torch.library.opcheck(
            torch.ops.pyft.linear_cross_entropy,
            (*inputs, targets, -100, terms, [True, True, True], num_targets),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
