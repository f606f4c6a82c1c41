"""Worker processes: results in order, mistakes that are told, signals held back, ends that are ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import util
from multiprocessing.context import SpawnProcess

import pytest
from waiting import SECONDS, process_state, wait_until
from worker_orders import Orders

from pyft.data.prepared import pool as pool_module
from pyft.data.prepared.pool import CHUNKS_PER_WORKER, WorkerPool
from pyft.errors import DataError, Interrupted


@pytest.fixture
def workers():
    """The worker processes that a test has started and that are alive."""
    before = set(multiprocessing.active_children())
    return lambda: [process for process in multiprocessing.active_children() if process not in before]


@pytest.fixture
def make_pool(workers):
    pools = []

    def make(num_workers: int, poll=lambda: None) -> WorkerPool:
        pools.append(WorkerPool(Orders(), num_workers, poll))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    assert not workers()


def test_results_come_in_the_order_of_the_chunks(make_pool, tmp_path):
    """Chunks go to the workers in turn; of each two one waits for the other's end, by turns the first."""
    pool = make_pool(2)
    verbs = ("await 0", "make 0", "make 1", "await 1", "await 2", "make 2", "make 3", "await 3")
    orders = [verb.replace(" ", f" {tmp_path}/") for verb in verbs]
    sent, received, pids = 0, [], set()
    while len(received) < len(orders):
        while pool.has_room and sent < len(orders):
            pool.send(orders[sent], str(sent))
            sent += 1
        assert sent - len(received) <= 2 * CHUNKS_PER_WORKER
        result = pool.receive()
        received.append(result.error)
        pids.add(result.counts.rows_read)
    assert received == [f"{order} {number}" for number, order in enumerate(orders)]
    assert len(pids) == 2 and os.getpid() not in pids


def test_large_chunks_and_results_at_once_block_nobody(make_pool):
    pool = make_pool(1)
    large = "x" * 3_000_000
    for _ in range(CHUNKS_PER_WORKER):
        pool.send(large, "a")
    for _ in range(4):
        assert pool.receive().error == f"{large} a"
        pool.send(large, "a")


def test_a_worker_loads_neither_torch_nor_transformers(make_pool):
    pool = make_pool(1)
    pool.send("modules", "")
    assert not pool.receive().unused


def test_a_worker_may_have_the_machines_memory_and_no_more(make_pool):
    pool = make_pool(1)
    pool.send("limits", "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert int(pool.receive().error) == max(memory, 16 << 30) or sys.platform != "linux"


def test_an_unexpected_error_is_raised_here_and_says_where_it_was(make_pool):
    pool = make_pool(1)
    pool.send("raise nothing by nothing", "a")
    with pytest.raises(ZeroDivisionError, match="nothing by nothing") as caught:
        pool.receive()
    assert "line" in caught.value.__notes__[0] and "encode" in caught.value.__notes__[0]


@pytest.mark.parametrize("num_good", [0, 1])
def test_a_worker_that_ends_by_itself_is_told(make_pool, num_good):
    pool = make_pool(2)
    for _ in range(num_good):
        pool.send("fine", "")
    pool.send("exit 9", "")
    for _ in range(num_good):
        pool.receive()
    with pytest.raises(DataError, match=r"died.* \(data\.num_workers\): set "):
        pool.receive()


def test_being_asked_to_stop_counts_for_more_than_a_lost_worker(make_pool, workers):
    is_asked = False

    def poll() -> None:
        if is_asked:
            raise Interrupted(signal.SIGTERM)

    pool = make_pool(1, poll)
    pool.send("exit 9", "")
    workers()[0].join()
    is_asked = True
    with pytest.raises(Interrupted):
        pool.receive()


def test_what_poll_raises_ends_workers_in_the_middle_of_their_work(make_pool, workers):
    polls = []

    def poll() -> None:
        polls.append(1)
        if len(polls) > 2:
            raise Interrupted(signal.SIGTERM)

    pool = make_pool(2, poll)
    for _ in range(4):
        pool.send("sleep 600", "")
    with pytest.raises(Interrupted):
        pool.receive()
    assert len(workers()) == 2
    pool.close()
    assert not workers()


def test_signals_do_not_reach_workers_from_their_first_moment_on(make_pool, workers):
    pool = make_pool(2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for process in workers():
            os.kill(process.pid, number)
    for _ in range(2):
        pool.send("good", "a")
    for _ in range(2):
        assert pool.receive().error == "good a"
    for process in workers():
        os.kill(process.pid, signal.SIGTERM)
    pool.send("fine", "a")
    assert pool.receive().error == "fine a"
    # The caller's own are as they were.
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


HELD_BACK_BEFORE = """
import signal
from worker_orders import Orders
from pyft.data.prepared.pool import HELD_BACK, WorkerPool
if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    WorkerPool(Orders(), 1, lambda: None).close()
    print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == HELD_BACK)
"""


def test_a_thread_that_blocks_signals_still_does(tmp_path):
    """In a process whose first worker this is: multiprocessing starts a process of its own before it."""
    script = tmp_path / "held_back.py"
    script.write_text(HELD_BACK_BEFORE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_a_worker_that_starts_while_the_interpreter_ends_is_ended(monkeypatch, workers):
    """It holds signals back, so multiprocessing would wait for it for ever."""
    start = SpawnProcess.start

    def end_pools_and_start(process: SpawnProcess) -> None:
        for finalizer in list(util._finalizer_registry.values()):
            if finalizer._callback is pool_module._kill:
                finalizer()
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", end_pools_and_start)
    with pytest.raises(RuntimeError, match="the program is ending"):
        WorkerPool(Orders(), 2, lambda: None)
    assert not workers()


ENDED = ("", "Z")
PARENT = """
import multiprocessing, sys, time
from worker_orders import Orders
from pyft.data.prepared.pool import WorkerPool
if __name__ == "__main__":
    pool = WorkerPool(Orders(), 2, lambda: None)
    for _ in range(4):
        pool.send("sleep 600", "")
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if sys.argv[1] == "stay":
        time.sleep(600)
"""


@pytest.mark.parametrize("how", ["leave", "stay"])
def test_workers_end_with_their_parent(tmp_path, how):
    """One that ends with its workers at work, and one that is killed."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), how]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if how == "stay":
            assert all(process_state(pid) not in ENDED for pid in pids)
            process.kill()
        process.wait(timeout=SECONDS)
        wait_until(lambda: all(process_state(pid) in ENDED for pid in pids), "the end of the workers")
