"""The shift, the boundaries, and the order of batches."""

from __future__ import annotations

import pytest
import torch

from pyft.data.batches.collate import collate
from pyft.data.batches.order import BatchSource
from pyft.data.encode.sample import Sample


def make_sample(*ids: int, trained: tuple[int, ...] = ()) -> Sample:
    labels = [token if token in trained else -100 for token in ids]
    return Sample(list(ids), labels, "f:1", "")


def test_targets_are_the_next_labels_and_stop_at_each_samples_end():
    batch = collate([make_sample(1, 2, 3, trained=(2, 3)), make_sample(4, 5, trained=(4, 5))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    # 4 is trained but has nothing before it in its own sample: it is no target, least of all of the 3.
    assert batch.targets.tolist() == [[2, 3, -100, 5, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert (batch.max_seqlen, batch.num_targets, batch.num_tokens) == (3, 3, 5)
    assert batch.cu_seqlens.dtype == torch.int32
    assert {batch.input_ids.dtype, batch.targets.dtype, batch.position_ids.dtype} == {torch.int64}


def test_packed_has_the_targets_of_the_unpacked():
    samples = [
        make_sample(*range(10 * n, 10 * n + n + 2), trained=tuple(range(10 * n + 1, 99))) for n in range(5)
    ]
    packed = collate(samples)
    alone = [collate([sample]) for sample in samples]
    assert packed.targets.tolist()[0] == [target for batch in alone for target in batch.targets.tolist()[0]]
    assert packed.position_ids.tolist()[0] == [p for batch in alone for p in batch.position_ids.tolist()[0]]
    assert packed.num_targets == sum(batch.num_targets for batch in alone)


@pytest.mark.parametrize("samples", [[], [Sample([], [], "f:1", "")]])
def test_nothing_to_collate_is_refused(samples):
    with pytest.raises(ValueError, match="samples must be given"):
        collate(samples)


def contents(source: BatchSource, epoch: int) -> list[list[int]]:
    return [source.batch(epoch, index).input_ids[0].tolist() for index in range(source.num_batches)]


def test_batches_are_a_pure_function_of_epoch_and_index():
    groups = [[make_sample(number, 0)] for number in range(1, 11)]
    source = BatchSource(groups, batch_size=3, seed=7, shuffle=True)
    assert source.num_batches == 4
    first, second = contents(source, 0), contents(source, 1)
    again = BatchSource(groups, batch_size=3, seed=7, shuffle=True)
    # Asked for in another order, from another object.
    assert again.batch(1, 2).input_ids[0].tolist() == second[2]
    assert contents(again, 0) == first
    assert first != second
    for epoch in (first, second):
        assert sorted(token for batch in epoch for token in batch if token) == list(range(1, 11))
    assert contents(BatchSource(groups, batch_size=3, seed=8, shuffle=True), 0) != first


def test_without_shuffle_groups_keep_their_order_and_stay_whole():
    groups = [[make_sample(1, 2), make_sample(3, 4)], [make_sample(5, 6)]]
    source = BatchSource(groups, batch_size=1, seed=0, shuffle=False)
    assert contents(source, 0) == contents(source, 9) == [[1, 2, 3, 4], [5, 6]]
    with pytest.raises(IndexError, match="batch 2 of 2"):
        source.batch(0, 2)
