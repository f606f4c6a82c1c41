from __future__ import annotations

import random

import numpy
import pytest
import torch

from pyft.trainer.rng import rng_state, same_rng_after, seed_everything, set_rng_state


def draw():
    return random.random(), random.gauss(0, 1), numpy.random.normal(), torch.rand(2).tolist()


@pytest.mark.parametrize("num_drawn", [0, 1, 2, 3])  # an odd number leaves a normal number kept for later
def test_generators_are_put_back(num_drawn):
    seed_everything(7)
    for _ in range(num_drawn):
        draw()
    state = rng_state()
    expected = [draw() for _ in range(3)]
    set_rng_state(state)
    assert [draw() for _ in range(3)] == expected
    set_rng_state(state)
    with same_rng_after():
        draw()
    assert [draw() for _ in range(3)] == expected


def test_seed_starts_every_generator():
    seed_everything(2**40 + 1)
    expected = draw()
    seed_everything(2**40 + 1)
    assert draw() == expected
    seed_everything(2**40 + 2)
    assert all(a != b for a, b in zip(draw(), expected, strict=True))
