"""Bias, scale, soft cap, label smoothing and z-loss against float64 autograd, for every way of computing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_equals_reference, gradients, poisoned_empty, random, random_targets

from pyft.ops import native, reference
from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.linear_cross_entropy import linear_cross_entropy

DTYPES = [torch.float32, torch.bfloat16]
OF_THE_LOSS = {"smoothing": {"label_smoothing": 0.1}, "z_loss": {"z_loss": 0.02}}
OF_THE_HEAD = {"none": {}, "scale": {"logit_scale": 0.3}, "softcap": {"logit_softcap": 2.0}}
ALL = {"label_smoothing": 0.1, "z_loss": 0.02, "logit_scale": 0.7, "logit_softcap": 2.0}
OPTIONS = [*OF_THE_HEAD.values(), *OF_THE_LOSS.values(), ALL]
NAMES = [*OF_THE_HEAD, *OF_THE_LOSS, "all"]
LARGE = 16411  # a vocabulary that goes by panels or in two passes
BY_CHUNKS, BY_PANELS, BY_TWO_PASSES = (False, False), (True, False), (False, True)


def check(num_rows, width, vocabulary, options, dtype, trained, bias="given"):
    """Compare with the reference; `trained` says which of hidden, head and bias train."""
    targets = random_targets(num_rows, vocabulary)
    inputs = [
        random(num_rows, width, seed=1, dtype=dtype),
        random(vocabulary, width, seed=2, scale=0.3, dtype=dtype),
        random(vocabulary, seed=3, dtype=dtype),
    ]
    inputs = [tensor.detach().requires_grad_(t) for tensor, t in zip(inputs, trained, strict=True)]
    if bias is None:
        del inputs[2]

    def ours(hidden, head, bias=None):
        return linear_cross_entropy(hidden, head, targets, bias=bias, **options)

    def theirs(hidden, head, bias=None):
        return reference.linear_cross_entropy(hidden, head, targets, bias=bias, **options)

    assert_equals_reference(ours, theirs, *inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (True, False, True)])
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 5), (19, 33, 97), (211, 24, 1031)])
def test_every_term_alone_and_all_together(shape, options, trained, dtype):
    check(*shape, options, dtype, trained)
    check(*shape, options, dtype, trained, bias=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "trained", [(True, True, True), (True, False, False), (True, False, True), (False, True, False)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_every_term_with_a_large_vocabulary(options, trained, dtype):
    plan = native.C.plan_linear_cross_entropy(
        num_tokens=19,
        width=7,
        vocabulary=LARGE,
        trains_head=any(trained[1:]),
        smooths="label_smoothing" in options,
    )
    in_two = any(trained[1:]) or "label_smoothing" in options
    assert (plan["by_panels"], plan["by_two_passes"]) == (BY_TWO_PASSES if in_two else BY_PANELS)
    check(19, 7, LARGE, options, dtype, trained)


@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False)])
def test_more_rows_than_one_block_or_than_are_kept(trained):
    check(1100, 5, 20011, ALL, torch.float32, trained)
    check(1100, 5, 20011, {"logit_softcap": 2.0, "z_loss": 0.02}, torch.float32, trained)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [*OF_THE_LOSS.values(), OF_THE_LOSS["smoothing"] | OF_THE_LOSS["z_loss"]])
@pytest.mark.parametrize(("num_rows", "vocabulary"), [(1, 3), (19, 97), (423, 1031)])
def test_terms_of_the_loss_from_logits(num_rows, vocabulary, options, dtype):
    targets = random_targets(num_rows, vocabulary)
    assert_equals_reference(
        lambda x: cross_entropy(x, targets, **options),
        lambda x: reference.cross_entropy(x, targets, **options),
        random(num_rows, vocabulary, scale=3.0, dtype=dtype),
    )


def test_label_smoothing_is_torchs():
    logits, targets = random(9, 31), random_targets(9, 31)
    ours = cross_entropy(logits, targets, label_smoothing=1.0)
    torchs = F.cross_entropy(logits, targets, label_smoothing=1.0, reduction="sum")
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("vocabulary", [50, LARGE])
@pytest.mark.parametrize("num_rows", [0, 7])
def test_no_counted_row_gives_zero_and_zero_gradients(num_rows, vocabulary, monkeypatch):
    inputs = random(num_rows, 16, seed=1), random(vocabulary, 16, seed=2), random(vocabulary, seed=3)
    poisoned_empty(monkeypatch)
    targets = torch.full((num_rows,), -100)
    results = gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, **ALL), *inputs)
    assert len(results) == 4
    assert all(torch.equal(result, torch.zeros_like(result)) for result in results)


@pytest.mark.parametrize("vocabulary", [97, LARGE])
def test_same_bits_on_any_number_of_threads(vocabulary):
    inputs = random(150, 24, seed=1), random(vocabulary, 24, seed=2), random(vocabulary, seed=3)
    targets = random_targets(150, vocabulary)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(
                gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, **ALL), *inputs)
            )
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("logit", [0.0, 1e-6, -1e-3, 0.3, -2.4, 2.6, 60.0, -1e9])
def test_the_cap_is_exact_near_zero_and_far_away(logit):
    # one id besides the target, whose logit is 0: the loss is softplus of the capped logit
    hidden, head = torch.tensor([[logit]]), torch.tensor([[0.0], [1.0]])
    loss = linear_cross_entropy(hidden, head, torch.tensor([0]), logit_softcap=4.0).double()
    expected = F.softplus(4.0 * torch.tanh(hidden.double() / 4.0)).squeeze()
    torch.testing.assert_close(loss, expected, rtol=2e-7, atol=0)


def test_errors_name_what_is_wrong():
    hidden, head, targets = random(4, 8), random(10, 8), torch.tensor([0, 1, 9, 2])
    for options, message in (
        ({"bias": random(9)}, r"bias.shape\[0\] is 9, weight expects 10"),
        ({"bias": random(10).bfloat16()}, r"bias.dtype is bfloat16, expected float32"),
        ({"logit_softcap": 0.0}, r"logit_softcap is 0.0, expected a number above 0"),
        ({"logit_softcap": float("inf")}, r"logit_softcap is inf"),
        ({"logit_scale": float("nan")}, r"logit_scale is nan, expected a finite number"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5, expected 0 <= label_smoothing <= 1"),
        ({"z_loss": -1.0}, r"z_loss is -1, expected a number not below 0"),
    ):
        with pytest.raises(ValueError, match=f"linear_cross_entropy: {message}"):
            linear_cross_entropy(hidden, head, targets, **options)
    with pytest.raises(ValueError, match=r"cross_entropy: label_smoothing is -0.1"):
        cross_entropy(random(4, 10), targets, label_smoothing=-0.1)
