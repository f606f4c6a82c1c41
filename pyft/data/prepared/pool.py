"""Worker processes that encode chunks; the results come in the order of the chunks.

    chunk k  ->  worker k mod n, which has at most two at a time  ->  result k

Workers are started afresh (not forked: a fork of a process with threads may hang) and import no torch.
Signals are held back in them: one sent to a whole terminal or job is for the run, which may have something
to save first. They end with the pool, at once, and with their parent, however that ends: their pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context, resource_tracker, util
from typing import TYPE_CHECKING, Any

from pyft.data.prepared.chunk import ChunkEncoder, EncodedChunk
from pyft.errors import DataError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from pyft.data.reading.chunks import RawChunk
    from pyft.data.rows.formats import RowFormat

CHUNKS_PER_WORKER = 2
_POLL_SECONDS = 0.2
_LEAST_ADDRESS_SPACE_BYTES = 16 << 30
HELD_BACK = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}


class WorkerPool:
    """A fixed number of workers, used in turn."""

    def __init__(self, encoder: ChunkEncoder, num_workers: int, poll: Callable[[], None]) -> None:
        """Start the workers, at least one; if one cannot be started, none is left.

        `poll` is called every 0.2 s while a result is waited for; what it raises comes out of `receive`.
        """
        self._poll = poll
        self._num_sent = self._num_received = 0
        self._pipes: list[Connection] = []
        processes: list[BaseProcess] = []
        # It also runs when the interpreter ends, before multiprocessing waits for processes.
        self._end = util.Finalize(self, _kill, args=(processes, self._pipes), exitpriority=10)
        context = get_context("spawn")
        # It starts with the first process otherwise; then it lets signals through, and leaves the thread
        # that started it open to them.
        with _signals_held_back():
            resource_tracker.ensure_running()
        try:
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(target=_work, args=(theirs, encoder), daemon=True)
                with theirs, _signals_held_back():
                    process.start()
                    processes.append(process)
                if not self._end.still_active():
                    # In another thread the interpreter ends: it has ended the others, and waits for this one.
                    _kill(processes, self._pipes)
                    raise RuntimeError("workers cannot be started: the program is ending")
        except BaseException:
            self.close()
            raise

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be sent."""
        return self._num_sent - self._num_received < CHUNKS_PER_WORKER * len(self._pipes)

    def send(self, chunk: RawChunk, format: RowFormat) -> None:
        """Hand out a chunk of a file of that format."""
        with self._alive():
            self._pipes[self._num_sent % len(self._pipes)].send((chunk, format))
        self._num_sent += 1

    def receive(self) -> EncodedChunk:
        """Wait for what the oldest chunk gave, or raise what its worker ran into and did not expect."""
        pipe = self._pipes[self._num_received % len(self._pipes)]
        while not pipe.poll(_POLL_SECONDS):
            self._poll()
        with self._alive():
            result = pipe.recv()
        self._num_received += 1
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._end()

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            # Whoever ended it may have told this process to end too.
            self._poll()
            raise DataError(
                "a worker that prepares the data died, perhaps for lack of memory "
                "(data.num_workers): set data.num_workers: 0 to do without it"
            ) from None


def _kill(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block signals: a process that is started inside blocks them too, from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, encoder: ChunkEncoder) -> None:
    """Encode what comes, in a process of its own."""
    # There is a worker for every core already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _limit_address_space()
    chunks: queue.SimpleQueue[tuple[RawChunk, RowFormat]] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(pipe, chunks), daemon=True).start()
    while True:
        result: Any
        try:
            result = encoder.encode(*chunks.get())
        except Exception as error:
            error.add_note(f"in a process that prepares data:\n{traceback.format_exc()}")
            result = error
        pipe.send(result)


def _limit_address_space() -> None:
    """Let a worker have the machine's memory, no more: a second wall behind the limits of chat templates."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # not every system has it
        import resource

        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (max(memory, _LEAST_ADDRESS_SPACE_BYTES), hard))


def _take(pipe: Connection, chunks: queue.SimpleQueue[tuple[RawChunk, RowFormat]]) -> None:
    """Empty the pipe while a chunk is being encoded, so that the sender never waits for its result."""
    try:
        while True:
            chunks.put(pipe.recv())
    except (EOFError, OSError):
        # The parent is gone.
        os._exit(1)
