"""linear_cross_entropy against float64 autograd, with every term, for every way of computing.

Long because the operation goes four ways (one pass, two passes, panels, chunks), and each meets every term.
"""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS, CPU, GPU, Backend, capture, on_backends, on_gpu, run_late
from numerics import assert_close_to_reference, assert_equals_reference, gradients, poisoned_empty
from torch import Tensor

from pyft.ops import native, reference
from pyft.ops.cuda import linear_cross_entropy as composition
from pyft.ops.cuda.matmul import multiply
from pyft.ops.linear_cross_entropy import linear_cross_entropy

DTYPES = [torch.float32, torch.bfloat16]
# Which of hidden, head and bias train.
FROZEN, TRAINED, WITHOUT_HEAD, HEAD = (1, 0, 0), (1, 1, 1), (1, 0, 1), (0, 1, 0)
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
LARGE = 16411  # a vocabulary that the CPU takes by panels, or in two passes when the head trains
CUDA_KERNELS = [pytest.param(name, marks=marks, id=name) for name, marks in BACKENDS.items() if name != "cpu"]


def on_cuda_kernels(test):
    """For tests of how the work is cut up there: under emulation and on a GPU."""
    return pytest.mark.parametrize("backend", CUDA_KERNELS, indirect=True)(test)


# A small vocabulary, cut into panels and chunks under emulation and on a GPU; the CPU cuts a large one.
each_vocabulary = on_backends("vocabulary", (41,), (97,), cpu=[(1,), (LARGE,)])


@pytest.fixture
def plans(backend, monkeypatch) -> list:
    """Outputs hold NaN, and CUDA kernels get small panels and chunks, so that there are several.

    Collects the plans that were followed.
    """
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
    backend: Backend, num_rows: int, width: int, vocabulary: int, trained: tuple = TRAINED,
    dtype: torch.dtype = torch.float32, scale: float | None = None,
) -> list[Tensor]:  # fmt: skip
    """Hidden, head and bias, of which `trained` says whether they train."""
    shapes = ((num_rows, width), (vocabulary, width), (vocabulary,))
    scales = (1.0, (0.1 if backend.name == "cuda" else 0.3) if scale is None else scale, 1.0)
    return [
        backend.random(*shape, seed=i + 1, scale=scales[i], dtype=dtype, trained=bool(trained[i]))
        for i, shape in enumerate(shapes)
    ]


def results(inputs: list[Tensor], targets: Tensor, **options) -> list[Tensor]:
    """Value and gradients; `inputs` may lack the bias."""
    return gradients(lambda h, w, b=None: linear_cross_entropy(h, w, targets, bias=b, **options), *inputs)


def check(inputs: list[Tensor], targets: Tensor, num_targets: int | None = None, **options) -> None:
    assert_equals_reference(
        lambda h, w, b=None: linear_cross_entropy(h, w, targets, bias=b, num_targets=num_targets, **options),
        lambda h, w, b=None: reference.linear_cross_entropy(h, w, targets, bias=b, **options),
        *inputs,
    )


def count(targets: Tensor) -> int:
    return int((targets != -100).sum())


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- values and gradients --------------------------------------------------------------------------------


@on_backends(
    "num_rows, width, vocabulary",
    (19, 33, 97),
    cpu=[(1, 8, 5), (211, 24, 1031)],
    cuda=[(1, 8, 5), (423, 256, 10007), (3000, 64, 5003)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED, WITHOUT_HEAD, HEAD])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_float64(backend, num_rows, width, vocabulary, options, trained, dtype):
    targets = backend.targets(num_rows, vocabulary)
    inputs = make_inputs(backend, num_rows, width, vocabulary, trained, dtype)
    check(inputs, targets, **options)
    check(inputs if backend.name == "cuda" else inputs[:2], targets, count(targets), **options)


@on_backends(
    "num_rows, width, vocabulary",
    (1, 8, 1),
    (1, 8, 5),
    (3, 16, 5003),
    (2, 3, 4096),
    (5, 40, 33),
    cpu=[(19, 33, 97), (423, 72, 1031)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED, HEAD])
def test_sizes(backend, num_rows, width, vocabulary, trained, dtype):
    inputs = make_inputs(backend, num_rows, width, vocabulary, trained, dtype)
    check(inputs, backend.targets(num_rows, vocabulary))
    check(inputs[:2], backend.targets(num_rows, vocabulary))
    last = backend.full(num_rows, value=vocabulary - 1, dtype=torch.int64)
    check(inputs, last, logit_softcap=3.0)


def test_entries_that_a_bias_excludes(backend, plans):
    hidden, head, bias = make_inputs(backend, 3, 6, 97, FROZEN)
    bias[:64] = float("-inf")  # under emulation two whole panels
    check([hidden, head, bias], backend.tensor([70, -100, 96]))


@pytest.mark.parametrize("logit", [0.0, 1e-6, -1e-3, 0.3, -2.4, 2.6, 60.0, -1e9])
def test_the_cap_is_exact_near_zero_and_far_away(backend, logit):
    # one id besides the target, whose logit is 0: the loss is softplus of the capped logit
    hidden, head = backend.tensor([[logit]]), backend.tensor([[0.0], [1.0]])
    loss = linear_cross_entropy(hidden, head, backend.tensor([0]), logit_softcap=4.0).double()
    expected = F.softplus(4.0 * torch.tanh(hidden.double() / 4.0)).squeeze()
    # CUDA kernels round 1 + exp(..) before they take its logarithm.
    torch.testing.assert_close(loss, expected, rtol=2e-7, atol=0 if backend.name == "cpu" else 2**-23)


# ---- rows and targets ------------------------------------------------------------------------------------


@each_vocabulary
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, ALL], ids=["plain", "z_loss", "all"])
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("num_rows", [0, 7])
def test_no_counted_row_gives_zero_and_zero_gradients(backend, plans, vocabulary, num_rows, trained, options):
    targets = backend.full(num_rows, value=-100, dtype=torch.int64)
    inputs = make_inputs(backend, num_rows, 16, vocabulary, trained)
    for num_targets in (None, 0):
        found = results(inputs, targets, num_targets=num_targets, **options)
        assert len(found) == 1 + sum(trained)
        assert all(torch.equal(result, torch.zeros_like(result)) for result in found)


@each_vocabulary
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_may_hold_anything_and_get_zeros(backend, plans, vocabulary, dtype, trained):
    targets = backend.targets(23, vocabulary)
    hidden, head, bias = make_inputs(backend, 23, 16, vocabulary, trained, dtype)
    dirty = hidden.detach().clone()
    dirty[targets == -100] = float("nan")
    for num_targets in (None, count(targets)):
        clean, found = (
            results([first, head, bias], targets, num_targets=num_targets)
            for first in (hidden, dirty.requires_grad_())
        )
        assert_equal(found, clean)
        assert not found[1][targets == -100].any()
        if vocabulary > 1:
            assert found[1][targets != -100].abs().amax(dim=1).min() > 0


def test_few_counted_among_many_rows(backend, plans):
    targets = backend.full(2500, value=-100, dtype=torch.int64)
    targets[[0, 1, 1024, 1299, 1300, 2499]] = backend.tensor([0, 6, 3, 2, 5, 1])
    for trained in (FROZEN, TRAINED):
        check(make_inputs(backend, 2500, 2, 7, trained), targets, 6)


@pytest.mark.parametrize("ignore_index", [-1, 7])
def test_one_counted_row_and_another_ignore_index(backend, plans, ignore_index):
    targets = backend.full(9, value=ignore_index, dtype=torch.int64)
    targets[4] = 40
    for trained in (FROZEN, TRAINED):
        inputs = make_inputs(backend, 9, 6, 41, trained)
        for num_targets in (None, 1):
            check(inputs, targets, num_targets, ignore_index=ignore_index)
        gradient = results(inputs, targets, ignore_index=ignore_index)[1]
        assert (gradient.abs().amax(dim=1) > 0).tolist() == [row == 4 for row in range(9)]


@each_vocabulary
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_show_in_the_loss(backend, plans, vocabulary, bad):
    hidden, head, _ = make_inputs(backend, 9, 16, vocabulary, FROZEN)
    with torch.no_grad():
        hidden[3, 3] = bad
    targets = torch.arange(9, device=backend.device) % vocabulary
    assert linear_cross_entropy(hidden, head, targets).isnan()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, head, targets).isnan()


@each_vocabulary
def test_non_contiguous_inputs(backend, plans, vocabulary):
    targets = torch.stack([backend.targets(19, vocabulary)] * 2, dim=1)[:, 0]
    views = [backend.random(33, n, seed=n, trained=False).T for n in (19, vocabulary)]
    assert not targets.is_contiguous() and not views[0].is_contiguous()
    for trained in (FROZEN, TRAINED):
        leaves = [t.detach().requires_grad_(bool(w)) for t, w in zip(views, trained[:2], strict=True)]
        check(leaves, targets)
        dense = [t.detach().contiguous().requires_grad_(t.requires_grad) for t in leaves]
        assert_equal(results(leaves, targets), results(dense, targets))


@each_vocabulary
def test_backward_twice_gives_the_same(backend, plans, vocabulary):
    hidden, head, _ = make_inputs(backend, 7, 5, vocabulary)
    loss = linear_cross_entropy(hidden, head, backend.targets(7, vocabulary))
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    second = torch.autograd.grad(loss * 2, (hidden, head))
    assert all(torch.allclose(2 * a, b, rtol=1e-6) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_same_inputs_same_bits(backend, plans, trained):
    targets = backend.targets(13, 97)
    inputs = make_inputs(backend, 13, 6, 97, trained, torch.bfloat16, scale=3.0)
    options = {name: value for name, value in ALL.items() if trained == TRAINED or name != "label_smoothing"}
    first = results(inputs, targets, **options)
    for seed in range(2):
        backend.reorder(seed + 10)
        assert_equal(results(inputs, targets, **options), first)


def test_errors_name_what_is_wrong(backend, plans):
    hidden, head, bias = make_inputs(backend, 4, 8, 10, FROZEN)
    targets = backend.tensor([0, 1, 9, 2])
    for arguments, options, message in (
        ((hidden[:, :7], head, targets), {}, r"hidden.shape\[1\] is 7, head_weight expects 8"),
        ((hidden, head.bfloat16(), targets), {}, r"head_weight.dtype is bfloat16, expected float32"),
        ((hidden.double(), head, targets), {}, "hidden.dtype is float64, expected float32 or bfloat16"),
        ((hidden, head, targets[:3]), {}, r"targets.shape\[0\] is 3, hidden expects 4"),
        ((hidden, head, targets.int()), {}, r"targets.dtype is int32, expected int64"),
        ((hidden, head, targets), {"bias": bias[:9]}, r"bias.shape\[0\] is 9, weight expects 10"),
        ((hidden, head, targets), {"bias": bias.bfloat16()}, "bias.dtype is bfloat16, expected float32"),
        ((hidden, head, targets), {"logit_softcap": 0.0}, r"logit_softcap is 0.0, expected a number above 0"),
        ((hidden, head, targets), {"logit_softcap": float("inf")}, "logit_softcap is inf"),
        (
            (hidden, head, targets),
            {"logit_scale": float("nan")},
            "logit_scale is nan, expected a finite number",
        ),
        (
            (hidden, head, targets),
            {"label_smoothing": 1.5},
            "label_smoothing is 1.5, expected 0 <= label_smoothing <= 1",
        ),
        ((hidden, head, targets), {"z_loss": -1.0}, "z_loss is -1, expected a number not below 0"),
        *(
            (
                (hidden, head, targets),
                {"num_targets": number},
                f"num_targets is {number}, targets has 4 elements",
            )
            for number in (-1, 5)
        ),
    ):
        with pytest.raises(ValueError, match=f"linear_cross_entropy: {message}"):
            linear_cross_entropy(*arguments, **options)


def test_opcheck(backend):
    targets, checks = backend.targets(7, 11), ["test_schema", "test_autograd_registration", "test_faketensor"]
    inputs = (*make_inputs(backend, 7, 5, 11), targets)
    terms, all_three = [0.5, 5.0, 0.1, 0.01], [True] * 3
    without_bias = (*inputs[:2], None, targets, -100, terms, [True, True, False], None)
    cases = [
        (torch.ops.pyft.linear_cross_entropy, (*inputs, -100, terms, all_three, None)),
        (torch.ops.pyft.linear_cross_entropy, without_bias),
    ]
    if backend.name == "cpu":  # the two passes of a large vocabulary are operations of their own there
        checks.append("test_aot_dispatch_dynamic")
        stats, kept = torch.rand(7, 2) + 1.0, torch.rand(4, 11)
        frozen = [tensor.detach() for tensor in inputs]
        forward = (*inputs[:3], torch.arange(7), -100, terms, 4)
        backward = (torch.ones(()), *frozen, stats, kept, -100, terms, all_three)
        cases.append((torch.ops.pyft.linear_cross_entropy_forward, forward))
        cases.append((torch.ops.pyft.linear_cross_entropy_backward, backward))
    else:
        cases.append((torch.ops.pyft.linear_cross_entropy, (*inputs, -100, terms, all_three, count(targets))))
    for op, arguments in cases:
        torch.library.opcheck(op, arguments, test_utils=checks)


# ---- on CUDA kernels: panels and chunks ------------------------------------------------------------------


@on_cuda_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_term_over_several_panels_and_chunks(backend, plans, options, trained, dtype):
    targets = backend.targets(13, 73)
    num_targets = count(targets) if dtype == torch.bfloat16 else None
    inputs = make_inputs(backend, 13, 3, 73, trained, dtype)
    check(inputs if options else inputs[:2], targets, num_targets, **options)
    plan, by_panels = plans[-1], trained == FROZEN and "label_smoothing" not in options
    assert (plan.by_panels, plan.num_rows) == (by_panels, num_targets or 13)
    assert len(plan.panels(73)) == (3 if by_panels else 1) and len(plan.chunks) > 1


@on_cuda_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [(1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1)])
def test_only_gradients_that_are_wanted(backend, plans, trained, dtype):
    targets = backend.targets(7, 41)
    check(make_inputs(backend, 7, 4, 41, trained, dtype), targets, count(targets), **ALL)
    if trained[1]:  # bfloat16 sums the head's gradient over chunks only where that costs no less
        assert plans[-1].sums_head == (dtype == torch.bfloat16 and count(targets) > 3 + 4)


@on_cuda_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_heads_gradient_is_summed_over_chunks(backend, plans, dtype):
    targets = torch.arange(17, device=backend.device) * 2
    check(make_inputs(backend, 17, 5, 41, TRAINED, dtype), targets, **ALL)
    assert len(plans[-1].chunks) == 6 and plans[-1].sums_head == (dtype == torch.bfloat16)


@on_cuda_kernels
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_alone_goes_by_panels(backend, plans, options):
    targets = backend.targets(7, 97)
    inputs = make_inputs(backend, 7, 9, 97, TRAINED)
    with torch.no_grad():
        loss = linear_cross_entropy(*inputs[:2], targets, bias=inputs[2], **options)
    assert plans[-1].by_panels and len(plans[-1].panels(97)) == 4
    exact = [t.detach().double() for t in inputs]
    expected = reference.linear_cross_entropy(*exact[:2], targets, bias=exact[2], **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@on_cuda_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_confident_rows_and_a_reference_that_grows(backend, plans, dtype):
    # The logits rise by 1, by 10 or by nothing from panel to panel, and the target has nearly all of the
    # softmax, first or last.
    rise = torch.tensor([1.0, 10.0, 0.0, -10.0])[:, None] * (torch.arange(97) // 32)
    bias = rise.clone()
    bias[:, 96] += 6.0
    for row, target in ((0, 96), (1, 96), (1, 50), (2, 96), (3, 0), (3, 96)):
        inputs = make_inputs(backend, 2, 16, 97, FROZEN, dtype, scale=0.1)
        inputs[2] = bias[row].to(inputs[2])
        check(inputs, backend.tensor([target, -100]))


@on_cuda_kernels
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("num_targets", [0, 3, 5, 13])
def test_a_wrong_number_of_targets_shows(backend, plans, num_targets, trained):
    targets = backend.full(13, value=-100, dtype=torch.int64)
    targets[[2, 5, 6, 12]] = backend.tensor([0, 40, 3, 9])
    found = results(make_inputs(backend, 13, 6, 41, trained), targets, num_targets=num_targets)
    assert found[0].isnan()
    assert num_targets == 0 or found[1].isnan().any()


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("target", [-1, 41, 2**40])
def test_a_target_outside_the_vocabulary(backend, plans, target, trained):
    """An error where that costs nothing; on CUDA kernels, which nobody waits for, NaN in its row."""
    inputs, targets = make_inputs(backend, 2, 6, 41, trained), backend.tensor([3, target])
    if backend.name == "cpu":
        with pytest.raises(IndexError, match=rf"linear_cross_entropy: targets\[1\] is {target}, .*41"):
            results(inputs, targets)
        return
    found = results(inputs, targets)
    assert found[0].isnan() and found[1][1].isnan().all() and found[1][0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_products_with_float32_results(backend, accumulate, dtype):
    a, b = (backend.random(*shape, seed=1, dtype=dtype, trained=False) for shape in ((65, 129), (129, 33)))
    wide = torch.empty(65, 2 * 136, device=backend.device, dtype=dtype)
    wide[:, :129] = a
    out = backend.full(65, 40)
    for factors in ((a, b), (wide[:, :129], b), (a.T.contiguous().T, b.T.contiguous().T)):
        out.fill_(3.0)
        multiply(*factors, out[:, :33], accumulate=accumulate)
        exact = a.double() @ b.double() + 3.0 * accumulate
        assert_close_to_reference(out[:, :33], exact, a.float() @ b.float() + 3.0 * accumulate)
        assert (out[:, 33:] == 3.0).all()


# ---- on the CPU alone: panels, two passes, threads -------------------------------------------------------


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
def test_a_large_vocabulary(num_rows, vocabulary, trained, dtype):
    plan = native.C.plan_linear_cross_entropy(
        num_tokens=num_rows, width=5, vocabulary=vocabulary, trains_head=trained, smooths=False
    )
    assert (plan["by_panels"], plan["by_two_passes"]) == (not trained, trained)
    targets = CPU.targets(num_rows, vocabulary)
    targets[2:] = torch.arange(num_rows - 2) * (vocabulary // num_rows)
    targets[num_rows // 2] = -100
    if num_rows != 3:  # more than one block of rows, most of their logits not kept
        least = plan["kept_rows"] if trained else plan["chunk_tokens"]
        assert count(targets) > 2 * least
    check(make_inputs(CPU, num_rows, 5, vocabulary, (1, trained, 0), dtype, scale=3.0)[:2], targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [FROZEN, TRAINED, WITHOUT_HEAD, HEAD])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_term_with_a_large_vocabulary(options, trained, dtype):
    in_two = any(trained[1:]) or "label_smoothing" in options
    plan = native.C.plan_linear_cross_entropy(
        num_tokens=19,
        width=7,
        vocabulary=LARGE,
        trains_head=any(trained[1:]),
        smooths="label_smoothing" in options,
    )
    assert (plan["by_panels"], plan["by_two_passes"]) == (not in_two, in_two)
    check(make_inputs(CPU, 19, 7, LARGE, trained, dtype), CPU.targets(19, LARGE), **options)


@pytest.mark.parametrize("trained", [FROZEN, HEAD])
def test_only_the_gradient_that_is_wanted_with_a_large_vocabulary(trained):
    check(make_inputs(CPU, 19, 33, LARGE, trained)[:2], CPU.targets(19, LARGE))


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("options", ["panels", "all"])
def test_more_rows_than_one_block_or_than_are_kept(trained, options):
    check(make_inputs(CPU, 1100, 5, 20011, trained), CPU.targets(1100, 20011), **OPTIONS[options])


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("vocabulary", [97, 5003, 17011])
def test_same_bits_on_any_number_of_threads(vocabulary, options, trained):
    inputs, targets = make_inputs(CPU, 150, 40, vocabulary, trained), CPU.targets(150, vocabulary)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(results(inputs, targets, **options))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert_equal(run, runs[0])


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


# ---- on a GPU alone --------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_runs_repeat_to_the_bit(trained):
    targets = GPU.targets(3000, 10007)
    inputs = make_inputs(GPU, 3000, 64, 10007, trained, torch.bfloat16)
    first = results(inputs, targets, z_loss=0.02)
    for _ in range(3):
        assert_equal(results(inputs, targets, z_loss=0.02), first)


@on_gpu
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_masked_and_wrong_rows_of_a_wide_vocabulary(trained):
    targets = GPU.targets(130, 1031)
    inputs = make_inputs(GPU, 130, 64, 1031, trained, torch.bfloat16)
    with torch.no_grad():
        inputs[0][targets == -100] = float("nan")
    for num_targets in (None, count(targets)):
        found = results(inputs, targets, num_targets=num_targets)
        assert all(tensor.isfinite().all() for tensor in found)
        assert not found[1][targets == -100].any()
    for wrong in (count(targets) - 1, count(targets) + 1):
        assert results(inputs, targets, num_targets=wrong)[0].isnan()
    targets[4] = 1031
    found = results(inputs, targets)
    assert found[0].isnan() and found[1][4].isnan().all()


@on_gpu
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_on_a_side_stream_behind_a_slow_producer(trained):
    targets = GPU.targets(423, 10007)
    inputs = make_inputs(GPU, 423, 256, 10007, trained, torch.bfloat16)
    expected = results(inputs, targets)
    found = run_late(lambda *late: results(list(late[:3]), late[3]), *inputs, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@on_gpu
@pytest.mark.parametrize("num_targets", [None, 200])
@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_in_a_cuda_graph(trained, num_targets):
    targets = torch.arange(423, device="cuda") * 20
    targets[200:] = -100
    inputs = make_inputs(GPU, 423, 256, 10007, trained, torch.bfloat16)
    graph, captured = capture(lambda: results(inputs, targets, num_targets=num_targets))
    with torch.no_grad():
        inputs[0].mul_(0.5)
    targets.copy_(targets.flip(0))
    graph.replay()
    expected = results(inputs, targets, num_targets=num_targets)
    for ours, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@on_gpu
@pytest.mark.parametrize(("trained", "share"), [(FROZEN, 0.1), (TRAINED, 0.3)])
def test_logits_are_never_all_stored_on_a_gpu(trained, share):
    num_rows, width, vocabulary = 8192, 256, 65536
    targets = (torch.arange(num_rows) * 7).cuda()
    inputs = make_inputs(GPU, num_rows, width, vocabulary, trained, torch.bfloat16)
    results(inputs, targets)  # torch's own workspaces are there from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(inputs, targets)
    assert torch.cuda.max_memory_allocated() - before < share * 4 * num_rows * vocabulary


@on_gpu
def test_tensors_on_two_devices_are_refused():
    hidden, head, _ = make_inputs(GPU, 4, 8, 10, FROZEN)
    with pytest.raises(ValueError, match=r"linear_cross_entropy: .*cpu"):
        linear_cross_entropy(hidden, head, torch.zeros(4, dtype=torch.int64))
