"""Batches of like lengths: every sample once, little apart in length, the longest first."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from pyft.data.batches.order import OrderedBatches
from pyft.data.encode.sample import Sample


def make_source(lengths: list[int], size: int, *, seed: int = 1, shuffle: bool = True) -> OrderedBatches:
    samples = [
        Sample(np.full(length, number, np.int32), np.full(length, -100, np.int32))
        for number, length in enumerate(lengths)
    ]
    return OrderedBatches(samples, size, seed, shuffle, lengths=lengths)


def lengths_of(source: OrderedBatches, epoch: int = 0) -> list[list[int]]:
    batches = [source.batch(epoch, index).cu_seqlens for index in range(source.num_batches)]
    return [batch.diff().tolist() for batch in batches]


def members_of(source: OrderedBatches, epoch: int = 0) -> list[list[int]]:
    batches = [source.batch(epoch, index) for index in range(source.num_batches)]
    return [batch.input_ids[0][batch.cu_seqlens[:-1].long()].tolist() for batch in batches]


@pytest.fixture
def lengths():
    rng = random.Random(0)
    return [rng.randint(1, 300) for _ in range(1003)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_once_in_batches_of_like_lengths(lengths, shuffle):
    source = make_source(lengths, 8, shuffle=shuffle)
    members = members_of(source)
    assert sorted(index for batch in members for index in batch) == list(range(1003))
    assert [len(batch) for batch in members] == [8] * 125 + [3]
    spreads = [max(batch) - min(batch) for batch in lengths_of(source)[:-1]]
    # By chance, 8 of them would be some 230 apart.
    assert sum(spreads) / len(spreads) < 20
    assert max(lengths_of(source)[0]) == max(lengths)


def test_the_order_of_batches_is_no_order_of_lengths(lengths):
    longest = [batch[0] for batch in lengths_of(make_source(lengths, 8))[1:-1]]
    rising = sum(one < other for one, other in pairwise(longest))
    assert 40 < rising < 85


def test_epochs_and_seeds_differ_and_are_each_the_same_again(lengths):
    source = make_source(lengths, 8)
    first, second = members_of(source, 0), members_of(source, 1)
    again = make_source(lengths, 8)
    assert members_of(again, 1) == second and members_of(again, 0) == first
    assert first != second and members_of(make_source(lengths, 8, seed=2)) != first
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_few_samples(count):
    lengths = list(range(1, count + 1))
    members = members_of(make_source(lengths, 8))
    assert sorted(index for batch in members for index in batch) == list(range(count))
    assert all(len(batch) == 8 for batch in members[:-1])


def test_batches_of_one_keep_the_order_without_shuffling():
    assert members_of(make_source([3, 1, 2], 1, shuffle=False)) == [[0], [1], [2]]
