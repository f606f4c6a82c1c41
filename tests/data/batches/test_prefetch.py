"""Batches made ahead: the same ones, one at a time, no more than asked for, and an end whatever happens."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from waiting import wait_until

from pyft.data.batches import prefetch
from pyft.data.batches.order import OrderedBatches
from pyft.data.batches.prefetch import PrefetchedBatches
from pyft.data.encode.sample import Sample


def make_source(num_samples: int = 20, size: int = 3) -> OrderedBatches:
    rng = random.Random(0)
    samples = []
    for number in range(num_samples):
        ids = np.full(rng.randint(1, 9), number, np.int32)
        samples.append(Sample(ids, ids))
    return OrderedBatches(samples, size, seed=1, shuffle=True)


class RecordingSource:
    """Notes what it is asked for and by whom; fails, or waits, at one batch."""

    def __init__(self, *, failure: tuple[int, Exception] | None = None, waits_at: int | None = None) -> None:
        self.num_batches, self.asked, self.threads = 6, [], set()
        self.failure, self.waits_at, self.may_go_on = failure, waits_at, threading.Event()
        self.num_inside = 0

    def batch(self, epoch: int, index: int) -> tuple[int, int]:
        self.num_inside += 1
        assert self.num_inside == 1, "two threads at once"
        self.asked.append((epoch, index))
        self.threads.add(threading.current_thread())
        if index == self.waits_at:
            self.may_go_on.wait()
        self.num_inside -= 1
        if self.failure is not None and index == self.failure[0]:
            raise self.failure[1]
        return epoch, index


def threads_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pyft batches"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads_left()


@pytest.mark.parametrize("ahead", [1, 4])
def test_the_same_batches_whatever_is_asked_for(ahead):
    source = make_source()
    places = [(epoch, index) for epoch in range(3) for index in range(source.num_batches)]
    places += [(1, 4), (1, 5), (0, 0), (2, 6), (3, 0), (3, 0), (3, 2)]
    with PrefetchedBatches(make_source(), ahead) as prefetched:
        assert prefetched.num_batches == source.num_batches == 7
        for place in places:
            expected, made = source.batch(*place), prefetched.batch(*place)
            assert torch.equal(made.input_ids, expected.input_ids)
            assert torch.equal(made.cu_seqlens, expected.cu_seqlens)


def test_the_next_batch_is_made_while_nobody_waits_for_it():
    source = RecordingSource()
    with PrefetchedBatches(source, 2) as prefetched:
        assert prefetched.batch(0, 4) == (0, 4)
        wait_until(lambda: len(source.asked) == 3, "two batches ahead")
        assert [prefetched.batch(0, 5), prefetched.batch(1, 0)] == [(0, 5), (1, 0)]
    assert threading.main_thread() not in source.threads and len(source.threads) == 1
    assert source.asked == [(0, 4), (0, 5), (1, 0), (1, 1), (1, 2)][: len(source.asked)]


def test_a_jump_never_has_two_threads_at_the_source():
    source = RecordingSource(waits_at=1)
    with PrefetchedBatches(source, 2) as prefetched:
        prefetched.batch(0, 0)
        wait_until(lambda: (0, 1) in source.asked, "the batch that waits")
        first = prefetched._thread

        def release() -> None:
            wait_until(lambda: prefetched._thread is not first, "the jump")
            source.may_go_on.set()

        releasing = threading.Thread(target=release)
        releasing.start()
        assert prefetched.batch(3, 3) == (3, 3)
        releasing.join()
    assert len(source.threads) == 2


def test_a_failure_is_raised_where_its_batch_is_asked_for():
    source = RecordingSource(failure=(2, OSError("torn")))
    with PrefetchedBatches(source, 4) as prefetched:
        assert prefetched.batch(0, 0) == (0, 0)
        wait_until(lambda: not threads_left(), "the failure")
        assert prefetched.batch(0, 1) == (0, 1)
        for _ in range(2):
            with pytest.raises(OSError, match="torn"):
                prefetched.batch(0, 2)
        assert prefetched.batch(0, 3) == (0, 3)


@pytest.mark.parametrize("error", [ValueError, None])
def test_it_ends_with_its_context(error):
    source = RecordingSource()
    prefetched = PrefetchedBatches(source, 3)
    try:
        with prefetched:
            prefetched.batch(0, 0)
            if error is not None:
                raise error
    except ValueError:
        pass
    assert not threads_left()


def test_a_second_sigint_waits_for_no_batch(monkeypatch):
    monkeypatch.setattr(prefetch, "_LEAVE_SECONDS", math.nan)  # no thread is waited for so long: ValueError
    source = RecordingSource(waits_at=1)
    with pytest.raises(KeyboardInterrupt), PrefetchedBatches(source, 1) as prefetched:
        prefetched.batch(0, 0)
        wait_until(lambda: (0, 1) in source.asked, "the batch that waits")
        raise KeyboardInterrupt
    source.may_go_on.set()
    wait_until(lambda: not threads_left(), "the thread's end")


def test_leaving_does_not_wait_for_a_read_that_hangs(monkeypatch):
    monkeypatch.setattr(prefetch, "_LEAVE_SECONDS", 0.01)
    source = RecordingSource(waits_at=1)
    with PrefetchedBatches(source, 1) as prefetched:
        prefetched.batch(0, 0)
        wait_until(lambda: (0, 1) in source.asked, "the batch that waits")
    assert len(threads_left()) == 1
    source.may_go_on.set()
    wait_until(lambda: not threads_left(), "the thread's end")


HANGING = """
import sys, threading
from pyft.data.batches.prefetch import PrefetchedBatches
class Hanging:
    num_batches = 2
    def batch(self, epoch, index):
        return threading.Event().wait() if index else "first"
print(PrefetchedBatches(Hanging(), 1).batch(0, 0), flush=True)
"""


def test_a_process_ends_without_it():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HANGING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "first\n", "")


def test_random_numbers_are_left_alone():
    def draw() -> list:
        return [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]

    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)
    before = draw()
    with PrefetchedBatches(make_source(), 3) as prefetched:
        for index in (0, 1, 2, 3, 4, 5, 6, 2):
            prefetched.batch(0, index)
    assert draw() == before
