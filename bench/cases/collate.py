"""collate: the samples of one batch to its tensors; read: the same samples from the prepared data first.

"lists" is the way with a Python number for each token. "Arrow, lists" reads record batches of 64 samples,
each checked as a whole when it is read, keeps 16 of them, and makes lists. Every batch is of other samples.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapes
import torch
from timing import Case

from pyft.data.batches.collate import Batch, collate
from pyft.data.encode.sample import IGNORED, Sample
from pyft.data.prepared.chunk import DIGEST_BYTES, EncodedChunk
from pyft.data.prepared.store import SampleStore, StoreWriter

DTYPES = ("int64",)
_SAMPLES_PER_ARROW_BATCH = 64
_ARROW_BATCHES_KEPT = 16

Lists = tuple[list[int], list[int]]


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The cases at one shape.

    Args:
        shape: T tokens in a batch, of so many samples; so many batches' samples in the prepared data.
        dtype: of ids, targets and positions.
        device: "cpu".

    Yields:
        Collating samples in memory; reading and collating them.
    """
    num_tokens, num_samples = int(shape["T"]), int(shape["samples"])
    stored = _make_samples(num_samples * int(shape["batches"]), num_tokens // num_samples)
    order = list(range(len(stored)))
    random.Random(0).shuffle(order)
    packs = itertools.cycle(
        [order[first : first + num_samples] for first in range(0, len(order), num_samples)]
    )
    folder = Path(tempfile.mkdtemp(dir=_scratch().name))
    _write_store(stored, folder)
    _write_arrow(stored, folder / "samples.arrow")
    store, arrow = SampleStore(folder, ["rows"]), _ArrowStore(folder / "samples.arrow")

    def on_other_packs(work: Callable[[list[int]], Batch]) -> Callable[[], tuple[list[int], Batch]]:
        def run() -> tuple[list[int], Batch]:
            members = next(packs)
            return members, work(members)

        return run

    def check(name: str, result: tuple[list[int], Batch]) -> str | None:
        members, batch = result
        expected = _collate_lists([_as_lists(stored[member]) for member in members])
        return None if _is_equal(batch, expected) else "is another batch"

    listed = list(map(_as_lists, stored))
    common = {"check": check, "work": num_tokens, "unit": "Mtokens/s", "scale": 1e6}
    yield Case(
        op="collate",
        label=f"collate {shapes.format_shape(shape)}",
        contenders={
            "pyft": on_other_packs(lambda members: collate([stored[m] for m in members])),
            "lists": on_other_packs(lambda members: _collate_lists([listed[m] for m in members])),
        },
        **common,
    )
    yield Case(
        op="collate",
        label=f"read    {shapes.format_shape(shape)}",
        contenders={
            "pyft": on_other_packs(lambda members: collate([store[m] for m in members])),
            "Arrow, lists": on_other_packs(lambda members: _collate_lists([arrow[m] for m in members])),
        },
        **common,
    )


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the whole run, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="pyft-bench-")


def _make_samples(num_samples: int, num_tokens: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(num_samples):
        ids = rng.integers(0, 150_000, num_tokens, dtype=np.int32)
        labels = np.where(np.arange(num_tokens) < num_tokens // 2, IGNORED, ids).astype(np.int32)
        samples.append(Sample(ids, labels))
    return samples


def _as_lists(sample: Sample) -> Lists:
    return sample.input_ids.tolist(), sample.labels.tolist()


def _collate_lists(samples: Sequence[Lists]) -> Batch:
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    boundaries = [0]
    for sample_ids, labels in samples:
        ids.extend(sample_ids)
        targets.extend(labels[1:])
        targets.append(IGNORED)
        positions.extend(range(len(sample_ids)))
        boundaries.append(len(ids))
    return Batch(
        input_ids=torch.tensor([ids], dtype=torch.int64),
        targets=torch.tensor([targets], dtype=torch.int64),
        position_ids=torch.tensor([positions], dtype=torch.int64),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        max_seqlen=max(len(sample_ids) for sample_ids, _ in samples),
        num_targets=len(targets) - targets.count(IGNORED),
        num_tokens=len(ids),
    )


def _is_equal(batch: Batch, expected: Batch) -> bool:
    names = ("input_ids", "targets", "position_ids", "cu_seqlens")
    tensors = [(getattr(batch, name), getattr(expected, name)) for name in names]
    return all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in tensors) and (
        batch.max_seqlen,
        batch.num_targets,
        batch.num_tokens,
    ) == (expected.max_seqlen, expected.num_targets, expected.num_tokens)


def _write_store(samples: Sequence[Sample], folder: Path) -> None:
    count = len(samples)
    digests = np.zeros((count, DIGEST_BYTES), np.uint8)
    trained = np.array([sample.num_trained for sample in samples], np.int32)
    writer = StoreWriter(folder)
    writer.add(
        EncodedChunk(
            ids=np.concatenate([sample.input_ids for sample in samples]),
            labels=np.concatenate([sample.labels for sample in samples]),
            lengths=np.array([len(sample) for sample in samples], np.int32),
            trained=trained,
            targets=trained,
            rows=np.arange(count, dtype=np.int32),
            numbers=np.arange(count),
            digests=digests,
            row_digests=digests,
        ),
        0,
    )
    writer.close()


def _write_arrow(samples: Sequence[Sample], path: Path) -> None:
    columns = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, columns) as writer:
        for first in range(0, len(samples), _SAMPLES_PER_ARROW_BATCH):
            some = samples[first : first + _SAMPLES_PER_ARROW_BATCH]
            arrays = ([s.input_ids for s in some], [s.labels for s in some])
            writer.write_batch(pa.record_batch([pa.array(a, columns[0].type) for a in arrays], columns))


class _ArrowStore:
    """Samples as lists, from record batches that are checked whenever they are read."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self._kept: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._crcs = [self._crc(self._reader.get_batch(n)) for n in range(self._reader.num_record_batches)]

    def __getitem__(self, index: int) -> Lists:
        number, position = divmod(index, _SAMPLES_PER_ARROW_BATCH)
        if number in self._kept:
            self._kept.move_to_end(number)
        else:
            batch = self._reader.get_batch(number)
            assert self._crc(batch) == self._crcs[number]
            self._kept[number] = batch
            if len(self._kept) > _ARROW_BATCHES_KEPT:
                self._kept.popitem(last=False)
        ids, labels = (self._kept[number].column(c)[position].values.to_numpy().tolist() for c in (0, 1))
        return ids, labels

    def _crc(self, batch: pa.RecordBatch) -> int:
        ids, labels = (batch.column(column).flatten().to_numpy() for column in (0, 1))
        return zlib.crc32(labels, zlib.crc32(ids))
