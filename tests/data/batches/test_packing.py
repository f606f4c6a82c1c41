"""Best-fit decreasing: whole, complete, full, deterministic."""

from __future__ import annotations

import random

import pytest

from pyft.data.batches.packing import pack


def test_every_sample_once_and_no_pack_too_long():
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 64) for _ in range(rng.randint(0, 200))]
        packs = pack(lengths, 64, seed=1)
        assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
        assert all(0 < sum(lengths[index] for index in members) <= 64 for members in packs)


def test_takes_the_fullest_pack_that_has_room():
    # 7 leaves 3; 6 leaves 4; 3 fits the first best, 4 then fills the second.
    packs = pack([7, 6, 3, 4], 10, seed=0)
    assert {frozenset(members) for members in packs} == {frozenset({0, 2}), frozenset({1, 3})}


def test_fills_well():
    rng = random.Random(3)
    lengths = [min(2048, int(rng.lognormvariate(5, 0.8)) + 1) for _ in range(1000)]
    packs = pack(lengths, 2048, seed=0)
    assert sum(lengths) / (len(packs) * 2048) > 0.97


def test_depends_on_the_seed_alone():
    lengths = [random.Random(1).randint(1, 30) for _ in range(5)] * 40
    assert pack(lengths, 100, seed=5) == pack(lengths, 100, seed=5)
    assert pack(lengths, 100, seed=5) != pack(lengths, 100, seed=6)


def test_a_sample_longer_than_a_pack_is_refused():
    assert pack([10], 10, seed=0) == [[0]]
    with pytest.raises(ValueError, match="sample 1 has 11 tokens, a pack holds 10"):
        pack([3, 11], 10, seed=0)
