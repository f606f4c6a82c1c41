"""How linear_cross_entropy cuts its work on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyft.ops.cuda.linear_cross_entropy_plan import Plan, plan_linear_cross_entropy

LLAMA = {"width": 4096, "vocabulary": 128256, "dtype": torch.bfloat16}
FROZEN, TRAINED = [True, False, False], [True, True, False]


def make(num_rows: int, wanted: list[bool], smooths: bool = False, **changes) -> Plan:
    return plan_linear_cross_entropy(num_rows, **(LLAMA | changes), wanted=wanted, smooths=smooths)


def test_panels_need_what_the_vocabulary_does_not_decide():
    small, large = make(1024, FROZEN), make(1024, FROZEN, vocabulary=1 << 20)
    assert small.by_panels and small.workspace_bytes == large.workspace_bytes < 48 << 20
    assert make(100_000, FROZEN).workspace_bytes < 150 << 20
    assert small.panels(128256)[-1] == (31 * 4096, 128256)


def test_who_goes_by_panels():
    no_gradient, of_bias = [False] * 3, [False, False, True]
    assert make(9, FROZEN).by_panels and not make(9, FROZEN, smooths=True).by_panels
    assert make(9, no_gradient).by_panels and make(9, no_gradient, smooths=True).by_panels
    assert not make(9, TRAINED).by_panels and not make(9, of_bias).by_panels


@pytest.mark.parametrize("num_rows", [1, 1024, 4096, 5120, 5121, 20_000])
def test_one_chunk_while_it_costs_no_more_than_a_sum_in_float32(num_rows):
    plan = make(num_rows, TRAINED)
    assert plan.sums_head == (len(plan.chunks) > 1) == (num_rows > 1024 + 4096)
    sum_and_a_chunk = 4 * LLAMA["vocabulary"] * (LLAMA["width"] + 1024)
    others = num_rows * LLAMA["width"] * 6 + (1 << 20)
    assert plan.workspace_bytes <= sum_and_a_chunk + others
    # Nothing is spared where the head's gradient is float32 anyway.
    assert not make(num_rows, TRAINED, dtype=torch.float32).sums_head
    assert (len(make(num_rows, TRAINED, dtype=torch.float32).chunks) > 1) == (num_rows > 1024)


def test_every_row_and_every_id_once():
    cases = itertools.product((0, 1, 7, 4097, 9000), (1, 4096, 50_001), (FROZEN, TRAINED), (False, True))
    for num_rows, vocabulary, wanted, smooths in cases:
        plan = make(num_rows, wanted, smooths, vocabulary=vocabulary)
        for cuts, length in ((plan.chunks, num_rows), (plan.panels(vocabulary), vocabulary)):
            assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts)][: len(cuts)]
            assert (cuts[-1][1] if cuts else 0) == length
        sizes = [end - begin for begin, end in plan.chunks]
        assert not sizes or max(sizes) == plan.chunk_rows < 2 * (min(sizes) + len(sizes))
        assert plan.row_stride % 8 == 0 and plan.row_stride >= plan.panel_ids


def test_a_plan_reads_well():
    assert str(make(1024, FROZEN)) == (
        "1024 rows in 1 chunks of 1024, panels of 4096 ids, 40.0 MiB of workspace"
    )
    assert "the whole vocabulary, head's gradient summed in float32" in str(make(9000, TRAINED))
