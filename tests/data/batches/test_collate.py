"""The shift, the boundaries, and the order of batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pyft.data.batches.collate import collate
from pyft.data.batches.order import OrderedBatches
from pyft.data.encode.sample import Sample


def make_sample(*ids: int, trained: tuple[int, ...] = ()) -> Sample:
    labels = [token if token in trained else -100 for token in ids]
    return Sample(np.array(ids, np.int32), np.array(labels, np.int32))


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


def test_many_samples_as_one_token_at_a_time():
    """Beside plain Python lists, at random; and nothing is written into the samples."""
    rng = random.Random(0)
    for _ in range(50):
        samples = []
        for _ in range(rng.randint(1, 30)):
            ids = np.array([rng.randrange(1 << 17) for _ in range(rng.randint(1, 40))], np.int32)
            labels = np.where([rng.random() < 0.5 for _ in ids], ids, -100).astype(np.int32)
            samples.append(Sample(ids, labels))
            ids.flags.writeable = labels.flags.writeable = False
        batch = collate(samples)
        ids, targets, positions, bounds = [], [], [], [0]
        for sample in samples:
            ids += sample.input_ids.tolist()
            targets += [*sample.labels.tolist()[1:], -100]
            positions += range(len(sample))
            bounds.append(len(ids))
        assert (batch.input_ids.tolist(), batch.targets.tolist()) == ([ids], [targets])
        assert (batch.position_ids.tolist(), batch.cu_seqlens.tolist()) == ([positions], bounds)
        assert batch.num_targets == len(targets) - targets.count(-100)
        assert (batch.num_tokens, batch.max_seqlen) == (len(ids), max(map(len, samples)))


def test_packed_has_the_targets_of_the_unpacked():
    samples = [
        make_sample(*range(10 * n, 10 * n + n + 2), trained=tuple(range(10 * n + 1, 99))) for n in range(5)
    ]
    packed = collate(samples)
    alone = [collate([sample]) for sample in samples]
    assert packed.targets.tolist()[0] == [target for batch in alone for target in batch.targets.tolist()[0]]
    assert packed.position_ids.tolist()[0] == [p for batch in alone for p in batch.position_ids.tolist()[0]]
    assert packed.num_targets == sum(batch.num_targets for batch in alone)


@pytest.mark.parametrize("samples", [[], [make_sample()], [make_sample(1, 2), make_sample(), make_sample(3)]])
def test_nothing_to_collate_is_refused(samples):
    with pytest.raises(ValueError, match="samples must be given"):
        collate(samples)


def contents(source: OrderedBatches, epoch: int) -> list[list[int]]:
    return [source.batch(epoch, index).input_ids[0].tolist() for index in range(source.num_batches)]


def test_batches_are_a_pure_function_of_epoch_and_index():
    samples = [make_sample(number, 0) for number in range(1, 11)]
    source = OrderedBatches(samples, batch_size=3, seed=7, shuffle=True)
    assert source.num_batches == 4
    first, second = contents(source, 0), contents(source, 1)
    again = OrderedBatches(samples, batch_size=3, seed=7, shuffle=True)
    # Asked for in another order, from another object.
    assert again.batch(1, 2).input_ids[0].tolist() == second[2]
    assert contents(again, 0) == first
    assert first != second
    for epoch in (first, second):
        assert sorted(token for batch in epoch for token in batch if token) == list(range(1, 11))
    assert contents(OrderedBatches(samples, batch_size=3, seed=8, shuffle=True), 0) != first


def test_without_shuffle_packs_keep_their_order_and_stay_whole():
    samples = [make_sample(5, 6), make_sample(3, 4), make_sample(1, 2)]
    source = OrderedBatches(samples, batch_size=1, seed=0, shuffle=False, packs=[[2, 1], [0]])
    assert contents(source, 0) == contents(source, 9) == [[1, 2, 3, 4], [5, 6]]
    with pytest.raises(IndexError, match="batch 2 of 2"):
        source.batch(0, 2)
