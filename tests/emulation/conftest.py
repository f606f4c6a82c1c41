"""The kernels alone, with the threads of blocks in the order of a seed: of one, or of three with `--slow`."""

from __future__ import annotations

import pytest

# An odd seed lets some warps run ahead, which shows a missing barrier soonest.
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2))]


@pytest.fixture(params=SEEDS, ids="seed{}".format)
def kernels(emulated, request):
    emulated.set_seed(request.param)
    return emulated
